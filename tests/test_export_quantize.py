"""INT8 stands in the graph: on the Linears, nowhere else, and as int8 in the file."""

import numpy as np
import onnx
import pytest
from benchmarks.int8_students import qdq_from_student
from export_stand_in import Student, exported_models, small_recording, spec_of, trained_student
from onnx import TensorProto

from device_agents.engine.on_onnxruntime import engine_from_onnx
from edge.errors import AnswerIsNo
from edge.prepare import model_inputs
from export.calibration import calibration_set
from export.quantize import int8_layers_of, int8_onnx_from_qdq

LINEARS = {
    "sensor_in",
    *(f"blocks.{block}.{name}" for block in (0, 1) for name in ("qkv", "proj", "up", "down")),
}


@pytest.fixture(scope="module")
def model():
    return onnx.load(exported_models()[1])


def calibration_inputs(spec, samples=32):
    calibration = calibration_set(small_recording(), spec, samples=samples)
    return calibration.inputs_from(calibration.rows)


def test_every_linear_outside_the_heads_is_int8(model):
    assert {name.split("/")[0] for name in int8_layers_of(model)} == LINEARS


def test_weights_lie_in_the_file_as_int8_and_nowhere_else(model):
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    weights = {
        node.input[0]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in kinds
    }
    assert len(weights) == len(LINEARS)
    assert {kinds[name] for name in weights} == {TensorProto.INT8}
    fp32, int8 = exported_models()
    assert int8.stat().st_size < 0.45 * fp32.stat().st_size


def test_heads_attention_norms_and_constants_stay_float(model):
    makers = {output: node for node in model.graph.node for output in node.output}
    quantised = set(int8_layers_of(model))
    for node in model.graph.node:
        if node.name in quantised or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for name in node.input:
            made_by = makers[name].op_type if name in makers else ""
            assert made_by not in ("QuantizeLinear", "DequantizeLinear"), node.name
    assert sum(node.op_type == "LayerNormalization" for node in model.graph.node) == 5


def test_biases_stay_float_and_zero_points_are_zero(model):
    for tensor in model.graph.initializer:
        assert tensor.data_type != TensorProto.INT32
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not values[node.input[2]].any()


def test_weight_scales_are_per_output_channel(model):
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            axis = next(a.i for a in node.attribute if a.name == "axis")
            assert values[node.input[1]].shape == (values[node.input[0]].shape[axis],)
            assert np.abs(values[node.input[0]]).max() == 127


def test_int8_scores_stay_near_the_fp32_ones():
    spec, recording = spec_of(), small_recording()
    fp32, int8 = (engine_from_onnx(path, spec) for path in exported_models())
    with fp32, int8:
        for row in recording.rows_in("test"):
            inputs = model_inputs(recording.read_sample(row), spec)
            before, after = fp32.score(inputs), int8.score(inputs)
            assert abs(before.anomaly_score - after.anomaly_score) < 0.05


def test_student_without_linears_is_refused_and_not_shipped_as_float():
    spec = spec_of(sensor=False)
    student = Student(spec, linears=False)
    with pytest.raises(AnswerIsNo, match="Linear layers to quantise, found none"):
        qdq_from_student(student, spec, [], kept_float=("heads",))


def test_convolutions_become_int8_where_asked_for(tmp_path):
    spec = spec_of(sensor=False)
    student = trained_student(sensor=False)
    qdq = qdq_from_student(
        student, spec, calibration_inputs(spec), kept_float=("heads",), convolutions=True
    )
    assert {"stem.0", "stem.3", "stem.6"} <= set(qdq.quantised)
    int8_onnx_from_qdq(qdq, spec, tmp_path / "model.onnx")
    assert len(int8_layers_of(onnx.load(tmp_path / "model.onnx"))) == 11


def test_student_is_left_as_it_was():
    spec, student = spec_of(sensor=False), trained_student(sensor=False)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    qdq_from_student(student, spec, calibration_inputs(spec), kept_float=("heads",))
    for name, tensor in student.state_dict().items():
        assert (tensor == before[name]).all(), name
