"""A student becomes an onnx_graph that says the same and takes exactly the spec's tensors."""

import numpy as np
import onnx
import pytest
from export_stand_in import (
    TorchScorer,
    exported_models,
    small_recording,
    spec_of,
    trained_student,
)

from device_agents.inspector.engine import engine_from_onnx
from edge.prepare import model_inputs
from export.onnx_graph import fp32_onnx_from_student, tensor_problems


@pytest.fixture(scope="module")
def model():
    return onnx.load(exported_models()[0])


def test_tensors_are_exactly_those_of_the_spec(model):
    assert tensor_problems(model, spec_of()) == []


def test_tensor_problems_name_what_differs(model):
    assert "present" in tensor_problems(model, spec_of(sensor=False))[0]


def test_layer_normalization_is_kept_whole(model):
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("LayerNormalization") == 5
    assert model.opset_import[0].version == 20
    assert [opset.domain for opset in model.opset_import] == [""]
    assert len(model.functions) == 0


def test_pixels_are_cast_before_anything_else_touches_them(model):
    readers = [node.op_type for node in model.graph.node if "image" in node.input]
    assert readers == ["Cast"]


def test_nodes_are_named_for_the_students_modules(model):
    names = [node.name for node in model.graph.node]
    assert "blocks.0.qkv/MatMul" in names
    assert len(set(names)) == len(names)


def test_file_holds_nothing_of_the_machine_that_exported(model):
    content = exported_models()[0].read_bytes()
    for trace in (b"site-packages", b"export_stand_in", b"/home/", b".py"):
        assert trace not in content


def test_onnx_scores_as_the_student_does():
    spec, recording = spec_of(), small_recording()
    student = TorchScorer(trained_student(), spec)
    with engine_from_onnx(exported_models()[0], spec) as engine:
        for row in recording.rows_in("test")[:6]:
            inputs = model_inputs(recording.read_sample(row), spec)
            ours, theirs = student.score(inputs), engine.score(inputs)
            assert abs(ours.anomaly_score - theirs.anomaly_score) < 1e-4
            np.testing.assert_allclose(ours.anomaly_map, theirs.anomaly_map, atol=1e-4)
            np.testing.assert_allclose(ours.embedding, theirs.embedding, atol=1e-3)


def test_student_without_a_sensor_takes_the_image_alone(tmp_path, capfd):
    spec = spec_of(sensor=False)
    fp32_onnx_from_student(trained_student(sensor=False), spec, tmp_path / "a.onnx")
    assert tensor_problems(onnx.load(tmp_path / "a.onnx"), spec) == []
    fp32_onnx_from_student(trained_student(sensor=False), spec, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert capfd.readouterr() == ("", "")  # the exporter's chatter is held back
