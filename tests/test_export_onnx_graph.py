"""A student becomes an onnx_graph that says the same and takes exactly the spec's tensors."""

import numpy as np
import onnx
import pytest
from benchmarks.int8_students import qdq_from_student
from export_stand_in import (
    TorchScorer,
    exported_models,
    small_recording,
    spec_of,
    trained_student,
)

from device_agents.engine.on_onnxruntime import engine_from_onnx
from edge.errors import InputError
from edge.prepare import model_inputs
from export.calibration import calibration_set
from export.onnx_graph import fp32_onnx_from_student, spec_for_batch, tensor_problems
from export.quantize import int8_onnx_from_qdq


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


def scores_of(path, spec, rows):
    recording = small_recording()
    inputs = [model_inputs(recording.read_sample(row), spec_of()) for row in rows]
    with engine_from_onnx(path, spec) as engine:
        several = engine.score_batch(inputs) if spec.batch > 1 else map(engine.score, inputs)
        return [(one.anomaly_score, *one.class_scores, *one.embedding) for one in several]


def test_batch_of_three_gives_each_sample_the_scores_that_it_has_alone(tmp_path):
    spec, rows = spec_for_batch(spec_of(), 3), small_recording().rows_in("test")[:3]
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    fp32_onnx_from_student(trained_student(), spec, fp32)
    assert tensor_problems(onnx.load(fp32), spec) == []
    together, alone = scores_of(fp32, spec, rows), scores_of(exported_models()[0], spec_of(), rows)
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert abs(np.diff(np.array(alone)[:, 0])).min() > 1e-3  # three samples that differ
    ranges = calibration_set(small_recording(), spec, samples=48)
    qdq = qdq_from_student(
        trained_student(), spec, ranges.inputs_from(ranges.rows), kept_float=("heads",)
    )
    assert len(int8_onnx_from_qdq(qdq, spec, int8)) == 9
    together, alone = scores_of(int8, spec, rows), scores_of(exported_models()[1], spec_of(), rows)
    np.testing.assert_allclose(together, alone, atol=2e-2)


@pytest.mark.parametrize("batch", [0, -1, 65, 10**9])
def test_batch_that_no_station_fills_is_refused(batch):
    with pytest.raises(InputError, match=rf"--batch.*1 to 64.*{batch}"):
        spec_for_batch(spec_of(), batch)
