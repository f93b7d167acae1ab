"""What NVIDIA's builder makes of the graph of every recipe, in FP16 and in INT8.

The widths are the recipes' own; of the blocks, which are alike, the first one or two stand.
"""

from pathlib import Path

import onnx
import pytest
from benchmarks.fresh_students import spec_for, student_for
from benchmarks.int8_students import int8_file

from distill import recipe as recipe_module
from distill.recipe import load_recipe
from export.compile_check import compile_check, missing_packages
from export.half_precision import half_precision
from export.layer_report import MOST_KERNELS_A_BLOCK, report_lines
from export.onnx_graph import onnx_from_module

SIDE = 64
# Of each recipe: what makes it short, its blocks then, and how many Linears a block has: query,
# key, value, project, up, down; with experts, up and down of all of them are one product each.
RECIPES = {
    "tiny": (("student.image_depth=1",), 3),
    "small": (("student.joint_depth=2",), 2),
    "base": (("student.joint_depth=2",), 2),
    "600m": (("student.joint_depth=1",), 1),
    "600m-sparse": (("student.joint_depth=1",), 1),
}
LINEARS = 6
DENSE = ("tiny", "small", "base", "600m")
MOST_OF_EXPERTS = 23  # kernels a block in INT8: routing and mixing are kernels of their own
MISSING = missing_packages()
needs_builder = pytest.mark.skipif(
    bool(MISSING), reason=f"NVIDIA's builder is not installed here: {', '.join(MISSING)}"
)


def test_no_recipe_is_left_out():
    folder = Path(recipe_module.__file__).parent / "recipes"
    assert {path.stem for path in folder.glob("*.toml")} == set(RECIPES)


@needs_builder
@pytest.mark.parametrize("name", RECIPES)
def test_every_linear_becomes_an_int8_gemm_and_every_attention_is_fused(name, tmp_path):
    overrides, blocks = RECIPES[name]
    recipe = load_recipe(name, overrides)
    spec, student = spec_for(recipe, SIDE), student_for(recipe, SIDE)
    meant = int8_file(student, spec, tmp_path / "int8.onnx")
    check = compile_check(tmp_path / "int8.onnx", meant)
    made = check.compiled
    assert check.status == "passed"
    assert made.not_int8 == {}, "Linears meant to be INT8, with what they became"
    assert made.not_fused == {}, "attentions in several kernels, and in which"
    assert set(made.int8) == set(meant)
    assert (len(meant), len(made.fused_attentions)) == (LINEARS * blocks, blocks)
    assert len(made.kernels_by_block) == blocks
    most = MOST_KERNELS_A_BLOCK if name in DENSE else MOST_OF_EXPERTS
    assert max(made.kernels_by_block.values()) <= most, made.kernels_by_block
    line, *short = report_lines(check)
    assert f"{len(meant)} of {len(meant)} quantised products are Int8 gemms" in line
    assert bool(short) == (name not in DENSE)


@needs_builder
@pytest.mark.parametrize("name", RECIPES)
def test_every_attention_is_fused_in_fp16(name, tmp_path):
    overrides, blocks = RECIPES[name]
    recipe = load_recipe(name, overrides)
    model = half_precision(onnx_from_module(student_for(recipe, SIDE), spec_for(recipe, SIDE)))
    onnx.save(model, tmp_path / "fp16.onnx")
    check = compile_check(tmp_path / "fp16.onnx")
    assert check.status == "passed"
    assert check.compiled.not_fused == {}
    assert len(check.compiled.fused_attentions) == blocks
    if name in DENSE:
        assert max(check.compiled.kernels_by_block.values()) <= MOST_KERNELS_A_BLOCK
