"""The engine on onnxruntime: what was asked for runs, and the file is the spec's model."""

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from small_station import BAD, CHANNELS, GOOD, READINGS, SIZE, spec_of, write_bundle, write_model

from device_agents.engine.load import engine_from_bundle
from device_agents.engine.on_onnxruntime import (
    PROVIDERS,
    _cuda_options,
    _refuse_other_options,
    default_threads,
    engine_from_onnx,
)
from edge.bundle import INT8_FILE, Bundle
from edge.errors import InputError, MachineError
from edge.model_spec import ImageInput, ModelSpec
from edge.prepare import model_inputs
from edge.sample import Frame, Sample, Window


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


def test_provider_that_is_absent_stops_instead_of_falling_back(tmp_path):
    if PROVIDERS["cuda"] in onnxruntime.get_available_providers():
        pytest.skip("this machine's onnxruntime has CUDA")
    write_model(tmp_path / "model.onnx", spec_of())
    with pytest.raises(MachineError, match="CUDAExecutionProvider, found only cpu"):
        engine_from_onnx(tmp_path / "model.onnx", spec_of(), "cuda")


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


def write_batch_model(path, spec: ModelSpec) -> None:
    """A model of `spec.batch` places: each sample's score is its brightness plus its shake."""
    batch, classes = spec.batch, len(spec.classes)
    kinds = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}

    def info(tensor):
        return helper.make_tensor_value_info(tensor.name, kinds[tensor.dtype], tensor.shape)

    def constant(name, values, dtype=np.int64):
        return onnx.numpy_helper.from_array(np.asarray(values, dtype=dtype), name)

    nodes = [
        helper.make_node("Cast", ["image"], ["image_f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["image_f"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Div", ["mean", "full"], ["brightness"]),
        helper.make_node("Abs", ["sensor"], ["magnitude"]),
        helper.make_node("ReduceMean", ["magnitude"], ["shake"], axes=[1, 2], keepdims=0),
        helper.make_node("Gather", ["present", "second"], ["sensor_there"], axis=1),
        helper.make_node("Mul", ["shake", "sensor_there"], ["shake_there"]),
        helper.make_node("Add", ["brightness", "shake_there"], ["anomaly_score"]),
        helper.make_node("Reshape", ["anomaly_score", "column"], ["score_column"]),
        helper.make_node("Expand", ["score_column", "classes"], ["class_scores"]),
        helper.make_node("Expand", ["score_column", "width"], ["embedding"]),
        helper.make_node("Reshape", ["anomaly_score", "cell"], ["score_cell"]),
        helper.make_node("Expand", ["score_cell", "map"], ["anomaly_map"]),
    ]
    constants = [
        constant("full", 255.0, np.float32),
        constant("second", 1),
        constant("column", [batch, 1]),
        constant("cell", [batch, 1, 1]),
        constant("classes", [batch, classes]),
        constant("width", [batch, spec.embedding_size]),
        constant("map", [batch, spec.map_height, spec.map_width]),
    ]
    graph = helper.make_graph(
        nodes,
        "batch",
        [info(t) for t in spec.inputs()],
        [info(t) for t in spec.outputs()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


@pytest.fixture
def of_four(tmp_path):
    spec = msgspec.structs.replace(spec_of(), batch=4)
    write_batch_model(tmp_path / "four.onnx", spec)
    with engine_from_onnx(tmp_path / "four.onnx", spec, threads=1) as engine:
        yield engine


def shaken(level: int, shake: float):
    window = Window(np.full((2, READINGS), shake, np.float32), CHANNELS, 0)
    sample = Sample("p", sample_of(level).frame, window)
    return model_inputs(sample, spec_of())


def test_batch_gives_each_sample_its_own_scores_whatever_lies_beside_it(of_four):
    levels = (10, 80, 160, 240)
    full = of_four.score_batch([shaken(level, 0.01 * level) for level in levels])
    assert [s.anomaly_score for s in full] == pytest.approx([g / 255 + 0.01 * g for g in levels])
    assert full[2].class_scores.shape == (3,)
    assert full[2].anomaly_map.shape == (4, 4)
    assert full[2].embedding == pytest.approx([full[2].anomaly_score] * 2)
    # Two places stay as they were: they change nothing, and give nothing.
    part = of_four.score_batch([shaken(240, 0.0), model_inputs(sample_of(80), of_four.spec)])
    assert [s.anomaly_score for s in part] == pytest.approx([240 / 255, 80 / 255])
    assert full[0].anomaly_score == pytest.approx(10 / 255 + 0.1), "no scores share memory"


def test_engine_of_a_batch_scores_one_sample_as_any_scorer_does(of_four):
    assert of_four.score(shaken(80, 0.2)).anomaly_score == pytest.approx(80 / 255 + 0.2)


def test_engine_of_one_place_scores_batches_of_one(tmp_path):
    write_model(tmp_path / "model.onnx", spec_of())
    with engine_from_onnx(tmp_path / "model.onnx", spec_of(), threads=1) as engine:
        [scores] = engine.score_batch([shaken(80, 0.0)])
    assert scores.anomaly_score == pytest.approx(80 / 255)


def test_split_adds_up_to_a_run_and_onnxruntime_waits_for_nobody(tmp_path):
    write_model(tmp_path / "model.onnx", spec_of())
    with engine_from_onnx(tmp_path / "model.onnx", spec_of(), threads=1) as engine:
        split = engine.split([shaken(80, 0.0)])
    assert split.copy_ms > 0
    assert split.compute_ms > 0
    assert split.wait_ms is None


def test_inputs_and_outputs_stay_where_they_were_bound(tmp_path):
    """A captured cuda_graph reads and writes fixed addresses; on the CPU it can be looked at."""
    write_model(tmp_path / "model.onnx", spec_of())
    with engine_from_onnx(tmp_path / "model.onnx", spec_of(), threads=1) as engine:
        places = {name: value.data_ptr() for name, value in engine._bound.items()}
        first = engine.score(shaken(GOOD, 0.0))
        again = engine.score(shaken(BAD, 1.0))
        assert {name: value.data_ptr() for name, value in engine._bound.items()} == places
    assert first.anomaly_score == pytest.approx(GOOD / 255, abs=1e-6)
    assert first.embedding == pytest.approx([GOOD / 255] * 2), "a later run changes no scores"
    assert again.anomaly_score == pytest.approx(BAD / 255 + 0.1, abs=1e-6)


def test_inputs_of_another_kind_are_never_converted_in_silence(tmp_path):
    write_model(tmp_path / "model.onnx", spec_of())
    wrong = {**shaken(GOOD, 0.0), "image": np.zeros((1, SIZE, SIZE, 3), np.float32)}
    with (
        engine_from_onnx(tmp_path / "model.onnx", spec_of(), threads=1) as engine,
        pytest.raises(AssertionError),
    ):
        engine.score(wrong)


def test_option_that_the_provider_did_not_take_is_an_error(tmp_path):
    write_model(tmp_path / "model.onnx", spec_of())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    with pytest.raises(MachineError, match="enable_cuda_graph = 1, found enable_cuda_graph = None"):
        _refuse_other_options(session, PROVIDERS["cpu"], {"enable_cuda_graph": "1"})


def test_arena_of_cuda_is_bounded_by_the_weights_beside_the_file_too(tmp_path):
    (tmp_path / "m.onnx").write_bytes(bytes(1000))
    (tmp_path / "m.onnx.data").write_bytes(bytes(5000))
    options = _cuda_options(tmp_path / "m.onnx", spec_of(), cuda_graph=False)
    frames = 16 * SIZE * SIZE * 3
    assert options["gpu_mem_limit"] == str((512 << 20) + 2 * 6000 + frames)
    assert options["enable_cuda_graph"] == "0"
    assert (
        _cuda_options(tmp_path / "m.onnx", spec_of(), cuda_graph=True)["enable_cuda_graph"] == "1"
    )


def test_broken_file_prints_nothing_and_is_not_tried_twice(tmp_path, capfd):
    """Asked to fall back, onnxruntime says so on standard output, where our JSON lines go."""
    write_model(tmp_path / "model.onnx", spec_of())
    content = (tmp_path / "model.onnx").read_bytes()
    for broken in (content.replace(b"MatMul", b"MatMu\xe5"), content[:-40], b"\xff" * 50):
        (tmp_path / "model.onnx").write_bytes(broken)
        with pytest.raises(InputError):
            engine_from_onnx(tmp_path / "model.onnx", spec_of())
    assert capfd.readouterr().out == ""
