"""The engine: what was asked for is what runs, and the file is the spec's model."""

import msgspec
import numpy as np
import onnxruntime
import pytest
from small_station import BAD, GOOD, SIZE, spec_of, write_bundle, write_model

from device_agents.engine import PROVIDERS, default_threads, engine_from_bundle, engine_from_onnx
from edge.bundle import INT8_FILE, Bundle
from edge.errors import InputError, MachineError
from edge.model_spec import ImageInput
from edge.prepare import model_inputs
from edge.sample import Frame, Sample


def sample_of(level: int) -> Sample:
    return Sample("p", Frame(np.full((SIZE, SIZE, 3), level, np.uint8), 0), None)


@pytest.mark.parametrize("sensor", [True, False])
def test_scores_have_the_shapes_of_the_spec(tmp_path, sensor):
    spec = spec_of(sensor=sensor)
    bundle = write_bundle(tmp_path / "bundle", spec)
    with engine_from_bundle(bundle, threads=1) as engine:
        for level in (GOOD, BAD):
            scores = engine.score(model_inputs(sample_of(level), spec))
            assert scores.anomaly_score == pytest.approx(level / 255, abs=1e-6)
            assert scores.class_scores.shape == (3,)
            assert scores.anomaly_map.shape == (4, 4)
            assert scores.embedding.shape == (2,)
    assert engine.name == f"onnxruntime {onnxruntime.__version__} cpu int8"


@pytest.mark.parametrize(
    "tensor",
    ["image", "sensor", "present", "class_scores", "anomaly_score", "anomaly_map", "embedding"],
)
def test_tensor_of_another_name_is_named(tmp_path, tensor):
    write_model(tmp_path / "model.onnx", spec_of(), **{tensor: "stranger"})
    with pytest.raises(InputError, match=f"'{tensor}'.*no such tensor"):
        engine_from_onnx(tmp_path / "model.onnx", spec_of())


@pytest.mark.parametrize(
    ("changed", "tensor"),
    [
        ({"image": ImageInput(SIZE, SIZE * 2)}, "input 'image' uint8"),
        ({"classes": ("good", "bad")}, "output 'class_scores'"),
        ({"map_height": 5}, "output 'anomaly_map'"),
        ({"sensor": None}, "no other input than the spec's, found 'sensor'"),
    ],
)
def test_model_of_another_spec_is_refused_by_the_tensor_that_differs(tmp_path, changed, tensor):
    write_model(tmp_path / "model.onnx", spec_of())
    other = msgspec.structs.replace(spec_of(), **changed)
    with pytest.raises(InputError, match=tensor):
        engine_from_onnx(tmp_path / "model.onnx", other)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_provider_that_is_absent_stops_instead_of_falling_back(tmp_path, provider):
    if PROVIDERS[provider] in onnxruntime.get_available_providers():
        pytest.skip(f"this machine has {provider}")
    write_model(tmp_path / "model.onnx", spec_of())
    with pytest.raises(MachineError, match=f"{PROVIDERS[provider]}, found only cpu"):
        engine_from_onnx(tmp_path / "model.onnx", spec_of(), provider)


def test_unknown_provider_and_form_name_the_nearest(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(InputError, match="Did you mean 'cuda'"):
        engine_from_bundle(bundle, "cudda")
    with pytest.raises(InputError, match="Did you mean 'int8'"):
        engine_from_bundle(bundle, form="int4")


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", b"\x08\x08"])
def test_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match="onnxruntime can load"):
        engine_from_onnx(tmp_path / "model.onnx", spec_of())
    with pytest.raises(InputError, match="onnxruntime can load"):
        engine_from_onnx(tmp_path / "none.onnx", spec_of())


def test_one_changed_byte_in_the_bundle_is_refused(tmp_path):
    write_bundle(tmp_path / "bundle")
    path = tmp_path / "bundle" / INT8_FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="SHA-256"):
        engine_from_bundle(Bundle.open(tmp_path / "bundle"))


def test_default_leaves_a_core_to_the_others():
    assert default_threads() >= 1
