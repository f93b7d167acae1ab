"""Files written by people: strict reading, and overrides from the command line."""

from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.config import struct_from_table, struct_from_toml, table_from_toml
from edge.errors import InputError


class Train(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epochs: int = 3
    rate: float = 0.1


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    train: Train = Train()
    teacher: Train | None = None


def from_text(tmp_path, text, *overrides):
    (tmp_path / "recipe.toml").write_text(text)
    return struct_from_toml(tmp_path / "recipe.toml", Recipe, overrides)


def test_a_file_is_read_into_its_struct(tmp_path):
    recipe = from_text(tmp_path, 'name = "tiny"\n[train]\nepochs = 5\n')
    assert recipe == Recipe("tiny", Train(epochs=5))


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ('name = "x"\ntrian = 1', "'trian'", "'train'"),
        ('name = "x"\n[train]\nepoch = 1', "'train.epoch'", "'epochs'"),
        ('name = "x"\n[teacher]\nraet = 1', "'teacher.raet'", "'rate'"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path, text, key, nearest):
    with pytest.raises(InputError) as caught:
        from_text(tmp_path, text)
    assert key in str(caught.value)
    assert f"Did you mean {nearest}?" in str(caught.value)


def test_a_value_of_the_wrong_type_names_its_path(tmp_path):
    with pytest.raises(InputError, match=r"train\.epochs"):
        from_text(tmp_path, 'name = "x"\n[train]\nepochs = "many"')


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(InputError, match="name"):
        from_text(tmp_path, "[train]\nepochs = 5\n")


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused(tmp_path, content):
    (tmp_path / "recipe.toml").write_bytes(content)
    with pytest.raises(InputError, match="TOML"):
        struct_from_toml(tmp_path / "recipe.toml", Recipe)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rate = 1\nname = 'x'\nrate = 2\n", "'rate' in line 3, after line 1"),
        ("a = 1\n[train] # fast\nlr = 1\n\nlr = 2", "'train.lr' in line 5, after line 3"),
        ("lr = 1\n[train]\nlr = 1\nlr = [\n 1,\n 2]\n", "'train.lr' in line 4, after line 3"),
        ("a.b = 1\na = 2\n", "'a' in line 2, where it has a value already"),
        ("a = 1\n[b]\nx = 1\n[a]\ny = 1\n", "'a' in line 4, where it has a value already"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_both_lines(tmp_path, text, said):
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        table_from_toml(path)
    assert said in str(caught.value)
    assert "Keep one" in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputError, match="TOML"):
            struct_from_toml(path, Recipe)


def test_overrides_win_over_the_file_and_reach_into_tables(tmp_path):
    text = 'name = "x"\n[train]\nepochs = 5\n'
    recipe = from_text(tmp_path, text, "train.epochs=7", "name=quick", "teacher.rate=0.5")
    assert recipe == Recipe("quick", Train(epochs=7), Train(rate=0.5))


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("epochs", "key=value"),
        ("=3", "key=value"),
        ("train.epoch=3", "'epochs'"),
        ("name.first=x", "single value"),
        ("train=3", "train"),
    ],
)
def test_an_override_that_fits_nothing_is_refused(tmp_path, override, hint):
    with pytest.raises(InputError, match=hint):
        from_text(tmp_path, 'name = "x"', override)


@given(st.integers(-(2**62), 2**62))
def test_an_override_keeps_its_number(number):
    table = {"name": "x"}
    recipe = struct_from_table(table, Recipe, where="test", overrides=(f"train.epochs={number}",))
    assert recipe.train.epochs == number


@given(st.text(max_size=20))
def test_any_override_is_taken_or_refused_in_words(text):
    try:
        struct_from_table({"name": "x"}, Recipe, where="test", overrides=(text,))
    except InputError as error:
        assert ": expected " in str(error)  # noqa: PT017 - either outcome is right


class Camera(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["grey", "colour"] = "grey"
    gains: tuple[float, ...] = ()


class Station(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cameras: dict[str, Camera] = {}
    spare: Camera | None = None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"cameras": {"left": {"knd": 1}}}, "unknown key 'cameras.left.knd'. Did you mean 'kind'?"),
        (
            {"cameras": {"left": {}, "right": {"kind": "color"}}},
            "one of grey, colour for cameras.right.kind, found 'color'. Did you mean 'colour'?",
        ),
        ({"spare": {"kind": "gray"}}, "for spare.kind, found 'gray'. Did you mean 'grey'?"),
        ({"spare": {"kind": 5}}, "string for spare.kind, found 5"),
        ({"cameras": {"a": {"gains": [1, "x"]}}}, "float for cameras.a.gains[1], found 'x'"),
        ({"cameras": {"a": {"gains": 5}}}, "list for cameras.a.gains, found 5"),
        ({"cameras": {"a": 5}}, "table for cameras.a, found 5"),
        ({"cameras": 5}, "table for cameras, found 5"),
    ],
)
def test_tables_by_name_are_read_as_strictly_as_others(table, said):
    with pytest.raises(InputError) as refused:
        struct_from_table(table, Station, where="test")
    assert said in str(refused.value)


def test_tables_by_name_are_read():
    station = struct_from_table({"cameras": {"a": {"kind": "colour"}}}, Station, where="test")
    assert station.cameras == {"a": Camera("colour")}
