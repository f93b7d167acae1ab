"""The keystone: tensors that follow from a spec, and a spec that survives JSON."""

import msgspec
import pytest

from edge.model_spec import ImageInput, ModelSpec, SensorInput
from edge.sample import Channel
from edge.verdict import DecisionRule, Threshold

SENSOR = SensorInput((Channel("a", "g", 1000.0), Channel("b", "A", 1000.0)), 128)
RULE = DecisionRule(Threshold(0.4, 0.01, 200, True), Threshold(0.5, 0.01, 200, True))


def spec(sensor=SENSOR, batch=1):
    return ModelSpec("m", ImageInput(48, 64), sensor, ("ok", "bad"), 6, 8, 32, RULE, batch)


def test_tensor_shapes_follow_from_the_spec():
    shapes = {tensor.name: tensor.shape for tensor in (*spec().inputs(), *spec().outputs())}
    assert shapes == {
        "image": (1, 48, 64, 3),
        "sensor": (1, 2, 128),
        "present": (1, 2),
        "class_scores": (1, 2),
        "anomaly_score": (1,),
        "anomaly_map": (1, 6, 8),
        "embedding": (1, 32),
    }
    assert {tensor.shape[0] for tensor in (*spec(batch=4).inputs(), *spec(batch=4).outputs())} == {
        4
    }


def test_without_a_sensor_there_is_only_the_image():
    assert [tensor.name for tensor in spec(sensor=None).inputs()] == ["image"]


def test_whole_frames_have_their_own_size_and_change_no_other_tensor():
    whole = msgspec.structs.replace(spec(batch=2), frame=ImageInput(480, 640))
    assert spec().takes == ImageInput(48, 64)
    assert whole.takes == ImageInput(480, 640)
    assert whole.inputs()[0].shape == (2, 480, 640, 3)
    assert whole.inputs()[1:] == spec(batch=2).inputs()[1:]
    assert whole.outputs() == spec(batch=2).outputs()


def test_spec_written_before_there_were_whole_frames_is_read():
    document = msgspec.to_builtins(spec())
    assert document.pop("frame") is None
    assert msgspec.convert(document, ModelSpec) == spec()


@pytest.mark.parametrize("sensor", [SENSOR, None])
def test_a_spec_reads_back_from_json_as_it_was(sensor):
    text = msgspec.json.encode(spec(sensor))
    assert msgspec.json.decode(text, type=ModelSpec) == spec(sensor)


def test_an_unknown_field_is_refused():
    document = {**msgspec.to_builtins(spec()), "precision": "int4"}
    with pytest.raises(msgspec.ValidationError, match="precision"):
        msgspec.convert(document, ModelSpec)
