"""The whole of the largest students through export and NVIDIA's builder: does it take them?

`make test` compiles every smaller recipe, and two blocks of these; here stand all of their blocks,
with fresh weights, which a builder does not look at.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from distill.recipe import load_recipe
from export.compile_check import compile_check, missing_packages
from export.onnx_graph import fp32_onnx_from_student
from tests.benchmarks.fresh_students import parameters_m, spec_for, student_for

RECIPES = ("600m", "600m-sparse")


def run(*, quick: bool = False) -> dict | None:
    """Export and compile each; `quick` takes two blocks of each."""
    if missing_packages():
        print(f"large_compile: SKIPPED, without {', '.join(missing_packages())}")
        return None
    overrides = ("student.joint_depth=2",) if quick else ()
    figures = {name: _compiled(name, overrides) for name in RECIPES}
    return {**figures, "kept": all(one["compiles"] for one in figures.values())}


def _compiled(name: str, overrides: tuple[str, ...]) -> dict:
    recipe = load_recipe(name, overrides)
    student = student_for(recipe)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        began = time.monotonic()
        fp32_onnx_from_student(student, spec_for(recipe), path)
        exported = time.monotonic()
        check = compile_check(path)
        figures = {
            "parameters, millions": parameters_m(student),
            "file, GB": sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e9,
            "export, s": exported - began,
            "compile, s": time.monotonic() - exported,
            "kernels": check.layers,
            "compiles": check.status == "passed",
        }
    print(f"  {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    return figures
