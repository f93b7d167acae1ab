"""Forms are made, judged as files, and INT8 gives layers back until its budget holds."""

import copy
from pathlib import Path

import onnx
import pytest
import torch
from export_stand_in import TorchScorer, small_recording, spec_of, trained_student
from onnx import TensorProto

from device_agents.engine.on_onnxruntime import engine_from_onnx
from edge.errors import AnswerIsNo, InputError
from export import parity
from export.calibration import calibration_set
from export.forms import (
    FASTEST_FIRST,
    Int8Choices,
    Trial,
    fastest_within_budget,
    made_forms,
    refuse_fp8,
    refuse_untrained,
)
from export.judge import judged_by
from export.onnx_graph import fp32_onnx_from_student

SPEC = spec_of()


def trial_of(student, folder):
    rows = small_recording().rows_in("val")

    def judge(scorer, name):
        return judged_by({name: scorer}, small_recording(), rows)[name]

    return Trial(
        folder,
        student,
        calibration_set(small_recording(), SPEC, samples=32),
        kept_float=("heads",),
        reference=judge(TorchScorer(student, SPEC), "checkpoint"),
        load=lambda path: engine_from_onnx(path, SPEC),
        judge=judge,
    )


@pytest.fixture
def spoilt():
    """One hidden channel of block 0 stands at 5000, read by no output: INT8 is coarse there."""
    student = copy.deepcopy(trained_student())
    with torch.no_grad():
        student.blocks[0].up.bias[7] += 5000.0
        student.blocks[0].down.weight[:, 7] = 0.0
    return student


def test_bad_layer_goes_back_to_float_and_stands_in_the_record(spoilt, tmp_path, monkeypatch):
    strict = parity.Budget(score_error=0.03, flip_rate=0.002, auroc_difference=0.001)
    monkeypatch.setitem(parity.BUDGETS, parity.ONNX_INT8, strict)
    trial = trial_of(spoilt, tmp_path)
    (form,) = made_forms(trial, "int8", Int8Choices(method="max", smooth=False))
    made = form.quantisation
    assert form.over == ()
    assert "blocks.0.down" in made.returned
    assert made.effects[0].layer == "blocks.0.down"
    assert not set(made.returned) & set(made.layers)
    assert len(made.returned) <= 2
    assert fastest_within_budget([form], trial.reference) is form


def test_budget_that_no_half_of_the_layers_reaches_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(parity.BUDGETS, parity.ONNX_INT8, parity.Budget(0.0, 0.0, 0.0))
    trial = trial_of(trained_student(), tmp_path)
    told = []
    trial.say = told.append
    forms = made_forms(trial, "int8", Int8Choices(method="max", smooth=False))
    made = forms[0].quantisation
    assert 0 < len(made.returned) <= (len(made.returned) + len(made.layers)) / 2
    assert len(made.effects) == 9
    assert any(line.startswith("  back to float: ") for line in told)
    with pytest.raises(AnswerIsNo, match=r"a score differs by .*\(layers that move scores most: "):
        fastest_within_budget(forms, trial.reference)


def test_weights_in_int4_are_a_form_with_its_own_parity(tmp_path):
    trial = trial_of(trained_student(), tmp_path)
    (form,) = made_forms(trial, "int4-weights", Int8Choices())
    assert form.parity.form == "onnx-int4-weights"
    assert form.parity.samples == 48
    assert form.score_ms > 0
    graph = onnx.load(tmp_path / "model.int4.onnx").graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert list(stored.values()).count(TensorProto.INT4) == 8
    scales = [node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"]
    assert {stored[name] for name in scales} == {TensorProto.FLOAT16}  # as all around them is


def test_half_the_bits_is_a_form_of_half_the_size(tmp_path):
    trial = trial_of(trained_student(), tmp_path)
    (form,) = made_forms(trial, "fp16", Int8Choices())
    assert form.parity.form == "onnx-fp16"
    assert form.over == ()
    fp32_onnx_from_student(trial.student, SPEC, tmp_path / "model.fp32.onnx")
    sizes = [(tmp_path / f"model.{name}.onnx").stat().st_size for name in ("fp16", "fp32")]
    assert sizes[0] < 0.6 * sizes[1]


def test_form_over_its_budget_is_passed_over_for_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setitem(parity.BUDGETS, parity.ONNX_INT4, parity.Budget(0.0, 0.0, 0.0))
    trial = trial_of(trained_student(), tmp_path)
    (over,) = made_forms(trial, "int4-weights", Int8Choices())
    (holds,) = made_forms(trial, "int8", Int8Choices(method="max", smooth=False))
    assert over.over
    assert fastest_within_budget([over, holds], trial.reference) is holds
    with pytest.raises(AnswerIsNo, match="parity of onnx-int4-weights"):
        fastest_within_budget([over], trial.reference)


def test_fp8_is_refused_for_every_orin():
    with pytest.raises(InputError, match=r"SM 8\.9, while every Orin has SM 8\.7"):
        refuse_fp8("fp8")
    refuse_fp8("int8")


def test_int8_self_stays_int8_where_it_was_trained_in_it():
    run, student = Path("runs/self"), trained_student()  # whose stem has convolutions
    with pytest.raises(InputError, match=r"runs/self: .*found --int8-attention: that"):
        refuse_untrained(Int8Choices(attention=True), student, run)
    both = "Leave out --int8-attention and --int8-convolutions, or name"
    with pytest.raises(InputError, match=both):
        refuse_untrained(Int8Choices(attention=True, convolutions=True), student, run)
    refuse_untrained(Int8Choices(), student, run)
    refuse_untrained(Int8Choices(convolutions=True), student.blocks, run)  # there are none
    refuse_untrained(Int8Choices(method="max", attention=True), student, run)  # measured anew


def test_auto_makes_of_a_student_what_each_precision_alone_makes(tmp_path):
    """SmoothQuant is folded into the weights, so that INT8 must not be made before the others."""
    student = copy.deepcopy(trained_student())
    with torch.no_grad():  # one channel of a norm far out, which smoothing hands on to the weights
        student.blocks[0].norm_2.weight[3] *= 64.0
    trial = trial_of(copy.deepcopy(student), tmp_path)
    together = {form.name: form for form in made_forms(trial, "auto", Int8Choices())}
    assert list(together) == list(FASTEST_FIRST)
    assert together["int8"].quantisation.smoothing > 0
    for name in ("fp16", "int4-weights"):
        (tmp_path / name).mkdir()
        alone = made_forms(trial_of(copy.deepcopy(student), tmp_path / name), name, Int8Choices())
        assert alone[0].parity == together[name].parity


def test_auto_of_a_student_that_overflows_everywhere_is_an_answer(tmp_path):
    student = copy.deepcopy(trained_student())
    with torch.no_grad():
        student.blocks[0].up.weight.fill_(1e30)
        student.blocks[0].up.bias.fill_(float("inf"))
    with pytest.raises(AnswerIsNo):
        made_forms(trial_of(student, tmp_path), "auto", Int8Choices())
