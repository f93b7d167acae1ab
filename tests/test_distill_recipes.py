"""The recipes that come with the package: their sizes, and that NVIDIA's builder takes them."""

from pathlib import Path

import pytest
import torch
from small_distillation import VIBRATION

from distill.recipe import load_recipe, recipe_names
from distill.students.student import Student
from distill.students.trunk import Experts, tokens_per_expert
from edge.model_spec import ImageInput, ModelSpec, SensorInput
from export.compile_check import compile_check, missing_packages
from export.onnx_graph import fp32_onnx_from_student

MILLIONS = {
    "tiny": (1, 2.5),
    "small": (20, 24),
    "base": (80, 100),
    "600m": (564, 636),
    "600m-sparse": (564, 636),
}


def spec_of(name: str, height: int = 256, width: int = 256) -> ModelSpec:
    return ModelSpec(
        name=name,
        image=ImageInput(height, width),
        sensor=SensorInput(VIBRATION, 2048),
        classes=("ok", "worn"),
        map_height=height // 16,
        map_width=width // 16,
        embedding_size=load_recipe(name).student.width,
    )


def student_without_weights(name: str) -> Student:
    """A student whose tensors have shapes and no memory."""
    with torch.device("meta"):
        return Student(spec_of(name), load_recipe(name))


def multiplications(student: Student, tokens: int) -> float:
    """Products of weights and tokens in the blocks, for one sample (attention's own left out)."""
    total = 0.0
    for module in student.joint_blocks.modules():
        if isinstance(module, torch.nn.Linear):
            total += tokens * module.in_features * module.out_features
        if isinstance(module, Experts):
            per_token = module.up_EDU[0].numel() + module.down_EUD[0].numel()
            total += module.experts * tokens_per_expert(tokens, module.experts) * per_token
    return total


def test_every_recipe_has_its_size_here():
    assert set(recipe_names()) == set(MILLIONS)


@pytest.mark.parametrize("name", MILLIONS)
def test_a_recipe_has_as_many_parameters_as_it_says(monkeypatch, name: str):
    if name == "tiny":  # its stem comes with weights, which the meta device cannot hold
        count = sum(p.numel() for p in Student(spec_of(name), load_recipe(name)).parameters())
    else:
        count = sum(p.numel() for p in student_without_weights(name).parameters())
    least, most = MILLIONS[name]
    assert least <= count / 1e6 <= most


def test_the_sparse_600m_does_two_fifths_of_the_dense_ones_arithmetic_at_most():
    dense = multiplications(student_without_weights("600m"), 293)
    sparse = multiplications(student_without_weights("600m-sparse"), 293)
    assert sparse <= 0.4 * dense


def test_600m_has_the_geometry_of_vit_huge():
    shape = load_recipe("600m").student
    assert (shape.width, shape.joint_depth, shape.heads, shape.hidden) == (1280, 32, 16, 5120)


@pytest.mark.parametrize("name", ["small", "base"])
def test_a_recipes_student_exports_and_compiles(tmp_path: Path, name: str):
    check_compiles(name, tmp_path)


@pytest.mark.parametrize("name", ["600m", "600m-sparse"])
def test_two_blocks_of_a_large_student_export_and_compile(tmp_path: Path, name: str):
    """Whole ones take minutes and gigabytes; `make bench` does those."""
    check_compiles(name, tmp_path, "student.joint_depth=2")


def test_a_windowed_student_at_768_by_512_exports_and_compiles(tmp_path: Path):
    check_compiles("small", tmp_path, "student.gated=true", size=(768, 512))


def check_compiles(name: str, folder: Path, *overrides: str, size=(256, 256)) -> None:
    if missing_packages():
        pytest.skip(f"NO COMPILE CHECK of {name}: not installed: {', '.join(missing_packages())}")
    torch.manual_seed(0)
    spec = spec_of(name, *size)
    student = Student(spec, load_recipe(name, overrides)).eval()
    fp32_onnx_from_student(student, spec, folder / "model.onnx")
    check = compile_check(folder / "model.onnx")
    assert check.status == "passed", check.remark
