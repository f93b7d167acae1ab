"""What became of each block: read from what NVIDIA's builder says of graphs that we ship."""

import onnx
import pytest
from benchmarks.fresh_students import spec_for, student_for
from export_stand_in import exported_models

from distill.recipe import load_recipe
from edge.bundle import CompileCheck, CompiledLayers
from export.compile_check import compile_check, missing_packages
from export.half_precision import half_precision
from export.layer_report import attention_softmaxes, kernels_in, report_lines
from export.onnx_graph import onnx_from_module

SIDE = 64
MISSING = missing_packages()
needs_builder = pytest.mark.skipif(
    bool(MISSING), reason=f"NVIDIA's builder is not installed here: {', '.join(MISSING)}"
)


@needs_builder
def test_fp32_graph_fuses_no_attention_and_each_is_named():
    check = compile_check(exported_models()[0], ["blocks.0.qkv/MatMul"])
    made = check.compiled
    assert list(made.not_fused) == ["blocks.0/Softmax", "blocks.1/Softmax"]
    assert made.not_fused["blocks.0/Softmax"] == "kgen on Float"
    assert made.float_kernels["student"].endswith(": the file is FP32")
    # Meant to be INT8, and left in float: named, with what it became.
    assert made.not_int8 == {"blocks.0.qkv/MatMul": "gemm on Float"}
    assert "not compiled to int8 here: blocks.0.qkv/MatMul" in check.remark
    assert "blocks.1/Softmax (kgen on Float)" in report_lines(check)[1]


@needs_builder
def test_fp16_alone_reaches_the_goal_of_kernels_a_block(tmp_path):
    onnx.save(half_precision(onnx.load(exported_models()[0])), tmp_path / "half.onnx")
    made = compile_check(tmp_path / "half.onnx").compiled
    assert made.not_fused == {}
    assert list(made.kernels_by_block) == ["blocks.0", "blocks.1"]
    assert made.kernels_by_block["blocks.0"] <= 10


def test_softmax_of_a_router_or_of_the_classes_is_no_attention(tmp_path):
    words = ("width=32", "heads=2", "hidden=64", "joint_depth=1", "experts=4")
    recipe = load_recipe("600m-sparse", tuple(f"student.{word}" for word in words))
    model = onnx_from_module(student_for(recipe, SIDE), spec_for(recipe, SIDE))
    softmaxes = [node.name for node in model.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 3  # attention's, the router's, the classes'
    assert list(attention_softmaxes(model)) == ["joint_blocks.blocks.0.attention/Softmax"]
    if not MISSING:
        onnx.save(half_precision(model), tmp_path / "half.onnx")
        why = compile_check(tmp_path / "half.onnx").compiled.float_kernels
        assert why["joint_blocks.blocks.0"].endswith(": small differences choose the experts")


def test_report_of_another_form_says_nothing_instead_of_zero():
    assert kernels_in("another version's report\nwithout such lines") == []
    check = CompileCheck("model.onnx", "passed", "TensorRT-RTX", "taken")
    assert report_lines(check) == []


def test_many_shortfalls_are_named_in_short_and_counted():
    layers = {f"blocks.{number}.up/MatMul": "kgen on Half" for number in range(9)}
    made = CompiledLayers(90, {"blocks.0": 10}, (), layers, (), {}, {})
    check = CompileCheck("model.onnx", "passed", "TensorRT-RTX", "taken", compiled=made)
    head, short = report_lines(check)
    assert "0 of 9 quantised products are Int8 gemms" in head
    assert "blocks.3.up/MatMul (kgen on Half), 5 more of the kind" in short
