"""The resize in the graph: the same grey levels as the host's, in forms that devices run."""

import functools

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from benchmarks.int8_students import qdq_from_student
from export_stand_in import (
    CHANNELS,
    READINGS,
    SIZE,
    TorchScorer,
    kept_folder,
    small_recording,
    spec_of,
    trained_student,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from device_agents.engine.on_onnxruntime import engine_from_onnx
from edge.model_spec import ImageInput, ModelSpec
from edge.prepare import image_tensor, model_inputs
from edge.sample import Frame, Sample, Window
from export import onnx_file
from export.calibration import calibration_set
from export.compile_check import compile_check, missing_packages
from export.half_precision import half_precision
from export.onnx_graph import fp32_onnx_from_student, onnx_from_module
from export.quantize import int8_onnx_from_qdq
from export.resize import filter_weights, put_resize_first, stretches_of

WHOLE = ImageInput(height=90, width=120)  # of frames; the stand-in looks at 64 x 64


def resize_alone(source, target, batch=1):
    """A graph of the resize alone, on onnxruntime."""
    spec = ModelSpec("m", ImageInput(*target), None, ("ok",), 1, 1, 1, None, batch, None)
    shape = spec.inputs()[0].shape
    graph = helper.make_graph(
        [
            helper.make_node(
                "Cast", ["image"], ["pixels"], name="student/Cast", to=TensorProto.FLOAT
            )
        ],
        "resize",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    put_resize_first(model, msgspec.structs.replace(spec, frame=ImageInput(*source)))
    onnx_file.check(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return model, lambda frames: session.run(None, {"image": frames})[0]


def frames_of(source, seed=0, batch=1):
    """Noise on the left, a slope on the right: sums of all kinds, halves among them."""
    height, width = source
    noise = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    slope = np.add.outer(np.arange(height), np.arange(width))[..., None] * [1, 2, 3] % 256
    noise[:, :, width // 2 :] = slope[:, width // 2 :]
    return noise


def on_the_host(frames, target):
    return np.concatenate([image_tensor(frame, ImageInput(*target)) for frame in frames])


side = st.integers(1, 300)


@settings(max_examples=40, deadline=None)
@given(st.tuples(side, side), st.tuples(side, side), st.integers(1, 2))
def test_any_size_to_any_other_as_on_the_host(source, target, batch):
    frames = frames_of(source, batch=batch)
    made = resize_alone(source, target, batch)[1](frames)
    np.testing.assert_array_equal(made, on_the_host(frames, target))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((480, 640), (192, 256)),
        ((960, 1280), (256, 256)),
        ((1080, 1920), (192, 320)),
        ((1200, 1600), (384, 512)),
        ((150, 250), (160, 256)),
        ((240, 320), (224, 288)),  # many sums lie just between two grey levels
        ((1024, 1279), (224, 288)),  # a prime width: no stretch divides it
    ],
)
def test_frames_of_cameras_are_those_of_the_host_to_the_bit(source, target):
    frames = frames_of(source)
    made = resize_alone(source, target)[1](frames)
    np.testing.assert_array_equal(made, on_the_host(frames, target))


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_plain_colour_stays_what_it_is(level):
    frames = np.full((1, 96, 131, 3), level, np.uint8)
    assert (resize_alone((96, 131), (64, 64))[1](frames) == level).all()


def test_side_that_fits_is_not_multiplied():
    products = lambda model: [n.op_type for n in model.graph.node].count("MatMul")  # noqa: E731
    for source, passes in (((64, 100), 1), ((100, 64), 1), ((100, 100), 2), ((64, 64), 0)):
        model, run = resize_alone(source, (64, 64))
        frames = frames_of(source)
        assert products(model) == passes
        np.testing.assert_array_equal(run(frames), on_the_host(frames, (64, 64)))


@pytest.mark.parametrize(("source", "target"), [(1280, 256), (1279, 256), (100, 640), (7, 3)])
def test_weights_are_fixed_point_numbers_that_sum_to_one(source, target):
    weights = filter_weights(source, target).astype(np.float64)
    steps = weights * 2**22
    assert (steps == np.round(steps)).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-5)
    cut = stretches_of(filter_weights(source, target))
    assert cut.weights_NPR.shape[0] * cut.weights_NPR.shape[1] == source + cut.appended
    assert (cut.weights_NPR == np.floor(cut.weights_NPR)).all()
    assert cut.weights_NPR.max() <= 2**11
    halves = cut.weights_NPR.shape[2] // 2
    high, low = cut.weights_NPR[:, :, :halves].sum(), cut.weights_NPR[:, :, halves:].sum()
    assert high * 2**11 + low == pytest.approx(steps.sum(), rel=1e-6)
    assert len(cut.high_TO) == len(cut.low_TO) <= 2


def whole_spec(batch=1):
    return msgspec.structs.replace(spec_of(), frame=WHOLE, batch=batch)


@functools.cache
def forms_of_whole_frames():
    """The stand-in in each precision, with whole frames going in."""
    spec, student, folder = whole_spec(), trained_student(), kept_folder()
    paths = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8", "of three")}
    fp32_onnx_from_student(student, spec, paths["fp32"])
    fp32_onnx_from_student(student, whole_spec(3), paths["of three"])
    onnx_file.save(half_precision(onnx_from_module(student, spec)), paths["fp16"])
    calibration = calibration_set(small_recording(), spec_of(), samples=48)
    seen = calibration.inputs_from(calibration.rows)  # at the student's size, as it is traced
    qdq = qdq_from_student(student, spec_of(), seen, kept_float=("heads",))
    int8_onnx_from_qdq(qdq, spec, paths["int8"])
    return paths


def whole_samples():
    """The recording's pictures as a camera of more pixels would have taken them, and noise."""
    recording, draw = small_recording(), np.random.default_rng(3)
    for row in recording.rows_in("test")[:6]:
        sample = recording.read_sample(row)
        pixels = image_tensor(sample.frame.pixels, WHOLE)[0]
        pixels = np.clip(pixels + draw.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        yield Sample(sample.sample_id, Frame(pixels, 0), sample.window)


@pytest.mark.parametrize(("form", "most"), [("fp32", 1e-4), ("fp16", 2e-3), ("int8", 3e-2)])
def test_whole_frames_score_as_the_checkpoint_does_with_the_hosts_resize(form, most):
    student = TorchScorer(trained_student(), spec_of())
    seen = set()
    with engine_from_onnx(forms_of_whole_frames()[form], whole_spec()) as engine:
        for sample in whole_samples():
            inputs = model_inputs(sample, engine.spec)
            assert inputs["image"].shape == (1, 90, 120, 3)
            theirs, ours = student.score(model_inputs(sample, spec_of())), engine.score(inputs)
            assert abs(theirs.anomaly_score - ours.anomaly_score) < most
            seen.add(round(ours.anomaly_score, 2))
    assert len(seen) > 2  # samples that differ


def test_batch_of_three_frames_gives_each_the_scores_that_it_has_alone():
    samples = list(whole_samples())[:3]
    several = [model_inputs(sample, whole_spec()) for sample in samples]
    with engine_from_onnx(forms_of_whole_frames()["of three"], whole_spec(3)) as engine:
        together = [one.anomaly_score for one in engine.score_batch(several)]
    with engine_from_onnx(forms_of_whole_frames()["fp32"], whole_spec()) as engine:
        alone = [engine.score(inputs).anomaly_score for inputs in several]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(alone) > 1e-3


@pytest.mark.parametrize("form", ["fp16", "int8"])
def test_resize_stays_fp32_where_all_else_is_less(form):
    graph = onnx.load(forms_of_whole_frames()[form]).graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    weights = {
        kind for name, kind in stored.items() if name.startswith("resize") and "weights" in name
    }
    assert weights == {TensorProto.FLOAT}
    assert TensorProto.FLOAT16 in stored.values()
    readers = [node.op_type for node in graph.node if "image" in node.input]
    assert readers == ["Cast"]  # pixels are cast before anything else touches them


def test_withheld_image_is_withheld_from_a_whole_frame_too():
    (sample, *_) = whole_samples()
    student = TorchScorer(trained_student(), spec_of())
    with engine_from_onnx(forms_of_whole_frames()["fp32"], whole_spec()) as engine:
        ours = engine.score(model_inputs(sample, whole_spec(), withhold="image"))
    theirs = student.score(model_inputs(sample, spec_of(), withhold="image"))
    assert abs(ours.anomaly_score - theirs.anomaly_score) < 1e-4


@pytest.mark.skipif(
    bool(missing_packages()),
    reason=f"NOT COMPILED: without {', '.join(missing_packages())}",
)
def test_nvidias_builder_takes_the_resize_and_adds_few_kernels(tmp_path):
    fp32_onnx_from_student(trained_student(), spec_of(), tmp_path / "host.onnx")
    host = compile_check(tmp_path / "host.onnx")
    whole = compile_check(forms_of_whole_frames()["fp32"])
    half = compile_check(forms_of_whole_frames()["fp16"])
    assert (host.status, whole.status, half.status) == ("passed",) * 3
    assert 0 < whole.layers - host.layers <= 10
    assert "finer than FP16's" in half.compiled.float_kernels["resize"]


def test_window_and_flags_pass_the_resize_by():
    names = [tensor.name for tensor in whole_spec().inputs()]
    assert names == ["image", "sensor", "present"]
    window = Window(np.zeros((2, READINGS), np.float32), CHANNELS, 0)
    sample = Sample("s", Frame(np.zeros((SIZE, SIZE, 3), np.uint8), 0), window)
    assert model_inputs(sample, whole_spec())["image"].shape == (1, 90, 120, 3)  # brought to it
