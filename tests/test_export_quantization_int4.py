"""Weights in int4: half a byte each in the file, block-wise scales, float arithmetic."""

import collections

import numpy as np
import onnx
import pytest
from export_stand_in import Student, small_recording, spec_of, trained_student
from onnx import TensorProto

from device_agents.engine.on_onnxruntime import engine_from_onnx
from edge.errors import AnswerIsNo
from edge.prepare import model_inputs
from export.onnx_graph import onnx_from_module
from export.quantization.int4 import _rounded, int4_weights, linears_of

SPEC = spec_of(sensor=False)
LINEARS = tuple(f"blocks.{b}.{n}" for b in (0, 1) for n in ("qkv", "proj", "up", "down"))


@pytest.fixture(scope="module")
def models():
    student = trained_student(sensor=False)
    before, after = onnx_from_module(student, SPEC), onnx_from_module(student, SPEC)
    layers = int4_weights(after, linears_of(student, kept_float=("heads",)))
    return before, after, layers


def test_every_linear_outside_the_heads_is_int4_and_nothing_else(models):
    _, model, layers = models
    assert linears_of(trained_student(sensor=False), kept_float=("heads",)) == LINEARS
    assert layers.quantised == LINEARS
    assert layers.too_narrow == ()
    kinds = collections.Counter(tensor.data_type for tensor in model.graph.initializer)
    assert kinds[TensorProto.INT4] == len(LINEARS)
    assert TensorProto.INT8 not in kinds
    assert all(node.op_type != "QuantizeLinear" for node in model.graph.node)


def test_two_weights_take_one_byte(models):
    _, model, _ = models
    packed = [t for t in model.graph.initializer if t.data_type == TensorProto.INT4]
    for tensor in packed:
        assert len(tensor.raw_data) == np.prod(tensor.dims) / 2
    assert sum(np.prod(tensor.dims) for tensor in packed) == 2 * 64 * (3 + 1 + 4 + 4) * 64


def test_blocks_run_along_the_input_channels(models):
    _, model, _ = models
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    for node in nodes:
        attributes = {one.name: one.i for one in node.attribute}
        rows, columns = stored[node.input[0]].dims
        assert attributes["axis"] == 0
        assert tuple(stored[node.input[1]].dims) == (rows // attributes["block_size"], columns)
    assert {node.name.rpartition("/")[0] for node in nodes} == set(LINEARS)
    assert {e.version for e in model.opset_import if e.domain in ("", "ai.onnx")} == {21}


def test_scores_stay_near_the_float_ones(models, tmp_path):
    scores = []
    samples = [
        model_inputs(small_recording().read_sample(row), SPEC)
        for row in small_recording().rows_in("test")[:8]
    ]
    for number, model in enumerate(models[:2]):
        path = tmp_path / f"{number}.onnx"
        onnx.save(model, path)
        with engine_from_onnx(path, SPEC) as engine:
            scores.append([engine.score(inputs).anomaly_score for inputs in samples])
    assert scores[1] == pytest.approx(scores[0], abs=0.15)
    assert scores[1] != scores[0]


def test_scale_with_the_least_error_is_no_worse_than_that_of_the_largest_weight():
    weight_KN = np.random.default_rng(0).standard_normal((256, 48)).astype(np.float32)
    weight_KN[3, 0] = 9.0
    codes_KN, scales_BN = _rounded(weight_KN, 128)
    assert np.abs(codes_KN).max() == 7
    whole = np.repeat(scales_BN, 128, 0)
    plain = np.repeat(np.abs(weight_KN.reshape(2, 128, 48)).max(1) / 7, 128, 0)
    error = ((codes_KN * whole - weight_KN) ** 2).sum()
    assert error < 0.95 * ((np.round(weight_KN / plain) * plain - weight_KN) ** 2).sum()


def test_zero_weights_stay_zero():
    codes_KN, scales_BN = _rounded(np.zeros((64, 16), np.float32), 64)
    assert not codes_KN.any()
    assert (scales_BN > 0).all()


def test_student_without_a_fitting_linear_is_refused():
    student = Student(SPEC, linears=False)
    model = onnx_from_module(student.eval(), SPEC)
    with pytest.raises(AnswerIsNo, match="input channels divide by 64, found none"):
        int4_weights(model, linears_of(student, kept_float=("heads",)))
