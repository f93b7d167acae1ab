"""The error tree: every error says where, what was expected, what was found, and what to do."""

import pickle

import pytest

from edge.errors import (
    AnswerIsNo,
    EdgeError,
    InputError,
    MachineError,
    UnfitSample,
    nearest_hint,
    signal_name,
)


@pytest.mark.parametrize(
    ("kind", "status"), [(AnswerIsNo, 1), (InputError, 2), (UnfitSample, 2), (MachineError, 3)]
)
def test_each_kind_has_its_exit_status_and_one_paragraph(kind, status):
    error = kind(where="a.toml", expected="a number", found="'x'", do="Write a number.")
    assert error.exit_status == status
    assert str(error) == "a.toml: expected a number, found 'x'. Write a number."
    assert isinstance(error, EdgeError)


def test_an_error_without_its_next_step_cannot_be_raised():
    with pytest.raises(TypeError):
        InputError(where="a", expected="b", found="c")


def test_hints_name_the_nearest_word_or_all_of_them():
    assert nearest_hint("epoch", ["epochs", "rate"]) == "Did you mean 'epochs'?"
    assert nearest_hint("zzz", ["b", "a"]) == "Known: a, b."
    assert nearest_hint("zzz", []) == "Nothing is known here."


def test_an_error_survives_its_way_between_processes():
    error = UnfitSample(where="a", expected="b", found="c", do="d.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_signal_without_a_name_is_its_number():
    assert signal_name(11) == "SIGSEGV"
    assert signal_name(40) == "signal 40"
