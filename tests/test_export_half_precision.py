"""FP16 with FP32 where it is needed: by module, proven on real samples and on the graph itself."""

import numpy as np
import onnx
import pytest
import torch
from benchmarks.fresh_students import CHANNELS, spec_for, student_for
from export_stand_in import (
    exported_models,
    kept_folder,
    small_recording,
    spec_of,
    trained_student,
)
from onnx import TensorProto, helper, numpy_helper

from device_agents.engine.on_onnxruntime import engine_from_onnx
from distill.recipe import load_recipe
from edge.errors import AnswerIsNo
from edge.prepare import model_inputs
from export.compile_check import compile_check, missing_packages
from export.half_precision import half_precision
from export.onnx_graph import onnx_from_module, tensor_problems
from export.quantization.int4 import int4_weights, linears_of

SPARSE = ("width=32", "heads=2", "hidden=64", "joint_depth=1", "experts=4")


@pytest.fixture(scope="module")
def fp16():
    model = half_precision(onnx.load(exported_models()[0]))
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(scope="module")
def sparse():
    """A student of our own with experts, patches and a sensor, in FP16."""
    recipe = load_recipe("600m-sparse", tuple(f"student.{word}" for word in SPARSE))
    student = student_for(recipe, side=64)
    spec = spec_for(recipe, side=64)
    model = half_precision(onnx_from_module(student, spec))
    onnx.checker.check_model(model, full_check=True)
    return model, student, spec


@pytest.fixture(scope="module")
def int4():
    """The stand-in with weights in int4: before its float parts went to FP16, and after."""
    student, models = trained_student(), []
    for halve in (False, True):
        model = onnx_from_module(student, spec_of())
        int4_weights(model, linears_of(student, kept_float=("heads",)))
        models.append(half_precision(model) if halve else model)
        onnx.checker.check_model(model, full_check=True)
    return models


def types_of(model):
    values = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    known = [*values.value_info, *values.input, *values.output]
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    return types | {tensor.name: tensor.data_type for tensor in values.initializer}


def reads(model, name):
    (node,) = (node for node in model.graph.node if node.name == name)
    found = (types_of(model)[tensor] for tensor in node.input)
    return {kind for kind in found if kind != TensorProto.INT64}  # axes and shapes


def test_inputs_and_outputs_keep_the_types_of_the_spec(fp16):
    assert tensor_problems(fp16, spec_of()) == []


def test_blocks_compute_in_fp16_and_heads_and_scaling_in_fp32(fp16):
    half, single = {TensorProto.FLOAT16}, {TensorProto.FLOAT}
    for name in ("blocks.0.qkv/MatMul", "blocks.1/Softmax", "blocks.0.norm_1/LayerNormalization"):
        assert reads(fp16, name) == half, name
    for name in ("heads.classes/Gemm", "student/Div", "student/Softmax", "student/ReduceMean"):
        assert reads(fp16, name) == single, name


def test_scores_of_held_out_samples_are_those_of_fp32(fp16, tmp_path):
    onnx.save(fp16, tmp_path / "half.onnx")
    spec, recording = spec_of(), small_recording()
    assert (tmp_path / "half.onnx").stat().st_size < 0.6 * exported_models()[0].stat().st_size
    with (
        engine_from_onnx(tmp_path / "half.onnx", spec) as half,
        engine_from_onnx(exported_models()[0], spec) as single,
    ):
        for row in recording.rows_in("test"):
            inputs = model_inputs(recording.read_sample(row), spec)
            ours, theirs = half.score(inputs), single.score(inputs)
            assert abs(ours.anomaly_score - theirs.anomaly_score) < 2e-3, row.sample_id
            np.testing.assert_allclose(ours.anomaly_map, theirs.anomaly_map, atol=5e-3)


def test_int8_has_fp16_scales_and_int8_initialisers():
    model = onnx.load(exported_models()[1])
    types = types_of(model)
    pairs = [node for node in model.graph.node if node.op_type.endswith("quantizeLinear")]
    pairs += [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(pairs) > 20
    stored = {tensor.name for tensor in model.graph.initializer}
    for node in pairs:
        assert types[node.input[1]] == TensorProto.FLOAT16, node.name
        assert node.input[1] in stored  # a scale that is computed is none for TensorRT
    assert sum(
        t.data_type == TensorProto.INT8 and len(t.dims) == 2 for t in model.graph.initializer
    )


def test_int4_weights_have_fp16_scales_and_meet_fp16_values(int4):
    model = int4[1]
    types, half = types_of(model), {TensorProto.FLOAT16}
    pairs = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(pairs) == 8  # four Linears in each of two blocks
    for node in pairs:
        assert types[node.input[0]] == TensorProto.INT4
        assert {types[node.input[1]], types[node.output[0]]} == half, node.name
    for name in ("blocks.0.qkv/MatMul", "blocks.1.down/MatMul", "blocks.1/Softmax"):
        assert reads(model, name) == half, name
    assert reads(model, "heads.classes/Gemm") == {TensorProto.FLOAT}
    assert tensor_problems(model, spec_of()) == []


def test_scores_of_int4_weights_hardly_move_when_the_rest_goes_to_fp16(int4, tmp_path):
    engines = []
    for number, model in enumerate(int4):
        onnx.save(model, tmp_path / f"{number}.onnx")
        engines.append(engine_from_onnx(tmp_path / f"{number}.onnx", spec_of()))
    sizes = [(tmp_path / f"{number}.onnx").stat().st_size for number in (0, 1)]
    assert sizes[1] < 0.85 * sizes[0]
    with engines[0] as single, engines[1] as half:
        for row in small_recording().rows_in("test"):
            inputs = model_inputs(small_recording().read_sample(row), spec_of())
            ours, theirs = half.score(inputs), single.score(inputs)
            assert abs(ours.anomaly_score - theirs.anomaly_score) < 5e-3, row.sample_id


@pytest.mark.skipif(
    bool(missing_packages()), reason=f"NVIDIA's builder is not here: {missing_packages()}"
)
def test_builder_takes_int4_weights_in_an_fp16_graph(int4, tmp_path):
    onnx.save(int4[1], tmp_path / "model.int4.onnx")
    assert compile_check(tmp_path / "model.int4.onnx").status == "passed"


def test_no_weight_stands_in_the_file_twice(fp16):
    before = onnx.load(exported_models()[0]).graph.initializer
    ours, theirs = (
        sorted(t.name for t in tensors if np.prod(t.dims, dtype=int) > 16)
        for tensors in (fp16.graph.initializer, before)
    )
    assert len(ours) > 20
    assert ours == theirs


def test_router_chooses_experts_in_fp32_and_experts_compute_in_fp16(sparse):
    model, _, _ = sparse
    router = [n.name for n in model.graph.node if n.name.endswith(".router/MatMul")]
    assert len(router) == 1
    assert reads(model, router[0]) == {TensorProto.FLOAT}
    experts = [n for n in model.graph.node if n.op_type == "MatMul" and ".mlp/" in n.name]
    assert len(experts) >= 4
    for node in experts:
        assert reads(model, node.name) == {TensorProto.FLOAT16}, node.name
    assert reads(model, "relation/Log") == {TensorProto.FLOAT}
    assert reads(model, "sensor_tokens.frames/Log") == {TensorProto.FLOAT}


def test_students_own_scores_survive_with_the_sensor_withheld(sparse):
    model, student, spec = sparse
    path = kept_folder() / "sparse.onnx"
    onnx.save(model, path)
    random = np.random.default_rng(0)
    inputs = {
        "image": random.integers(0, 256, spec.inputs()[0].shape, dtype=np.uint8),
        "sensor": 40 * random.normal(size=(1, len(CHANNELS), 2048)).astype(np.float32),
        "present": np.array([[1, 0]], np.float32),
    }
    with engine_from_onnx(path, spec) as engine, torch.no_grad():
        found = engine.score(inputs)
        wanted = student(*(torch.tensor(inputs[t.name]) for t in spec.inputs()))
    assert abs(found.anomaly_score - float(wanted[1])) < 2e-3
    np.testing.assert_allclose(found.class_scores, wanted[0][0].numpy(), atol=5e-3)


def one_product(weight, *, module="block"):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name=f"{module}/MatMul")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 32]) for n in "xy")
    graph = helper.make_graph([node], "one", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_weight_beyond_the_range_of_fp16_is_refused_by_name():
    weight = np.eye(32, dtype=np.float32)
    weight[3, 4] = 7e4
    with pytest.raises(AnswerIsNo, match=r"65504.*larger ones in w"):
        half_precision(one_product(weight))
    kept = half_precision(one_product(weight, module="heads.classes"))  # a head stays FP32
    assert kept.graph.initializer[0].data_type == TensorProto.FLOAT


def test_channel_too_quiet_for_an_fp16_scale_gets_new_codes_in_every_weight_that_shares_it():
    codes = np.full((32, 32), 127, np.int8)
    scales = np.full(32, 1e-2, np.float32)
    scales[5] = 2.0**-22  # FP16 would keep 2 bits of it
    model = one_product(np.zeros((32, 32), np.float32))
    del model.graph.initializer[:], model.graph.node[:]
    for name, source, target in (("p", "x", "h"), ("q", "h", "y")):
        weight, inputs = f"{name}_weight", [name, "s"]
        model.graph.node.extend(
            [
                helper.make_node("DequantizeLinear", inputs, [weight], name=f"{name}/DQ", axis=1),
                helper.make_node("MatMul", [source, weight], [target], name=f"{name}/MatMul"),
            ]
        )
        model.graph.initializer.append(numpy_helper.from_array(codes, name))
    model.graph.initializer.append(numpy_helper.from_array(scales, "s"))
    half_precision(model)
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert stored["s"].dtype == np.float16
    for name in "pq":
        weights = stored[name].astype(np.float32) * stored["s"].astype(np.float32)
        np.testing.assert_allclose(weights, codes * scales, rtol=2e-3, atol=2.0**-21)
        assert set(stored[name][:, 5]) == {32}  # 127 / 4: the scale went up, the codes down
