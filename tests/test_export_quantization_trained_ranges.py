"""Ranges that a student was trained with go into the file, and none is measured again."""

from dataclasses import replace

import msgspec
import numpy as np
import onnx
import pytest
from export_stand_in import TorchScorer, small_recording, spec_of, trained_student

from device_agents.engine.on_onnxruntime import engine_from_onnx
from distill.checkpoint import Int8Input
from edge.bundle import FORM_FILES
from edge.errors import InputError
from export.calibration import calibration_set
from export.forms import Int8Choices, Trial, made_forms
from export.judge import judged_by
from export.quantization.trained_ranges import calibrated_ranges

SPEC = spec_of()


@pytest.fixture(scope="module")
def calibration():
    return calibration_set(small_recording(), SPEC, samples=32)


@pytest.fixture(scope="module")
def ranges(calibration):
    return calibrated_ranges(trained_student(), calibration, kept_float=("heads",))


def stretched(inputs):
    """Other ranges than any calibration would find."""
    return tuple(msgspec.structs.replace(one, covered=one.covered * 1.25) for one in inputs)


def trial_of(folder, calibration, trained):
    rows = small_recording().rows_in("val")
    lines = []

    def judge(scorer, name):
        return judged_by({name: scorer}, small_recording(), rows)[name]

    trial = Trial(
        folder,
        trained_student(),
        calibration,
        kept_float=("heads",),
        reference=judge(TorchScorer(trained_student(), SPEC), "checkpoint"),
        load=lambda path: engine_from_onnx(path, SPEC),
        judge=judge,
        trained=trained,
        say=lines.append,
    )
    return trial, lines


def activation_scales(path):
    """The scale of each quantised activation in a file."""
    model = onnx.load(path)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantisers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return sorted({float(np.float32(stored[node.input[1]].item())) for node in quantisers})


def test_every_quantised_layer_has_a_range_to_train_with(ranges, calibration):
    assert ranges.samples == 32
    assert ranges.method in ("max", "percentile", "entropy", "mse")
    assert all(one.covered > 0.0 for one in ranges.inputs)
    layers = [layer for one in ranges.inputs for layer in one.layers]
    assert len(layers) == len(set(layers))
    assert not any(layer.startswith("heads") for layer in layers)


def test_trained_ranges_stand_in_the_file_and_no_sample_is_watched(ranges, calibration, tmp_path):
    trained = stretched(ranges.inputs)
    trial, lines = trial_of(tmp_path, calibration, trained)
    (form,) = made_forms(trial, "int8", Int8Choices())
    assert form.quantisation.method == "training"
    assert form.quantisation.method_movements == form.quantisation.smoothing_movements == {}
    assert not any("Calibrating" in line for line in lines)
    assert f"{len(trained)} ranges as trained" in "".join(lines)
    scales = activation_scales(tmp_path / FORM_FILES["int8"])
    wanted = sorted({one.covered / 127 for one in trained})
    assert scales == pytest.approx(wanted, rel=2e-3)  # FP16 in the file


def test_a_method_that_is_asked_for_measures_anew(ranges, calibration, tmp_path):
    trial, lines = trial_of(tmp_path, calibration, stretched(ranges.inputs))
    (form,) = made_forms(trial, "int8", Int8Choices(method="max", smooth=False))
    assert form.quantisation.method == "max"
    assert any("Calibrating" in line for line in lines)


def test_layers_that_were_not_trained_in_int8_are_refused(ranges, calibration, tmp_path):
    trial, _ = trial_of(tmp_path, calibration, ranges.inputs)
    with pytest.raises(InputError, match="Leave out --int8-convolutions and --int8-attention"):
        made_forms(trial, "int8", Int8Choices(attention=True))
    other = replace(trial, trained=(*ranges.inputs, Int8Input(("blocks.9.up",), 1.0)))
    with pytest.raises(InputError, match=r"other layers: blocks\.9\.up"):
        made_forms(other, "int8", Int8Choices())
