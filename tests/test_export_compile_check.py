"""NVIDIA's own parser and builder, on this machine, without a GPU."""

import onnx
import pytest
from export_stand_in import exported_models
from onnx import TensorProto, helper

from edge.errors import AnswerIsNo
from export import compile_check as module
from export.compile_check import compile_check, missing_packages

MISSING = missing_packages()
needs_builder = pytest.mark.skipif(
    bool(MISSING), reason=f"NVIDIA's builder is not installed here: {', '.join(MISSING)}"
)


def write_onnx(path, nodes, inputs, outputs, constants=()):
    values = [
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in side]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "graph", *values, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@needs_builder
def test_builder_takes_both_forms_and_every_quantised_linear_becomes_int8():
    fp32, int8 = map(compile_check, exported_models())
    assert (fp32.status, int8.status) == ("passed", "passed")
    assert (fp32.int8_layers, int8.int8_layers) == (0, 9)  # sensor_in and 4 in each of 2 blocks
    assert int8.layers > 9
    assert int8.plan_bytes > 0
    assert int8.seconds > 0
    assert "SM 8.6" in int8.builder


@needs_builder
def test_uint8_transpose_is_refused_by_name_with_the_remedy(tmp_path):
    path = write_onnx(
        tmp_path / "model.onnx",
        [helper.make_node("Transpose", ["x"], ["y"], name="stem/Transpose", perm=[1, 0])],
        [("x", TensorProto.UINT8, [2, 3])],
        [("y", TensorProto.UINT8, [3, 2])],
    )
    with pytest.raises(AnswerIsNo, match=r"Transpose 'stem/Transpose'.*UInt8.*Cast uint8 pixels"):
        compile_check(path)


@needs_builder
def test_quantised_bias_is_refused_by_name_with_the_remedy(tmp_path):
    path = write_onnx(
        tmp_path / "model.onnx",
        [
            helper.make_node("DequantizeLinear", ["b", "s"], ["d"], name="head/Bias"),
            helper.make_node("Add", ["x", "d"], ["y"], name="head/Add"),
        ],
        [("x", TensorProto.FLOAT, [2, 3])],
        [("y", TensorProto.FLOAT, [2, 3])],
        [
            helper.make_tensor("b", TensorProto.INT32, [3], [1, 2, 3]),
            helper.make_tensor("s", TensorProto.FLOAT, [], [0.1]),
        ],
    )
    with pytest.raises(AnswerIsNo, match=r"'head/Bias'.*Int32.*Keep biases unquantised"):
        compile_check(path)


@needs_builder
def test_operator_unknown_to_the_parser_is_named(tmp_path):
    path = write_onnx(
        tmp_path / "model.onnx",
        [helper.make_node("Det", ["x"], ["y"], name="head/Det")],
        [("x", TensorProto.FLOAT, [3, 3])],
        [("y", TensorProto.FLOAT, [])],
    )
    with pytest.raises(AnswerIsNo, match="Det 'head/Det': an operator the parser does not know"):
        compile_check(path)


@needs_builder
def test_file_that_is_no_onnx_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model at all")
    with pytest.raises(AnswerIsNo, match="Failed to parse"):
        compile_check(tmp_path / "model.onnx")


@needs_builder
def test_crash_of_the_builder_is_an_answer_and_takes_nothing_down(monkeypatch):
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(AnswerIsNo, match="exit status 1"):
        compile_check(exported_models()[0])


def test_builder_that_is_not_installed_is_said_and_not_passed_over(monkeypatch):
    monkeypatch.setattr(module, "_BINDINGS", "no_such_bindings")
    check = compile_check(exported_models()[0])
    assert check.status == "not run"
    assert "not installed: tensorrt-rtx-cu13-bindings" in check.remark
