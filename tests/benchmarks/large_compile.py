"""The whole of the largest students through export and NVIDIA's builder: what does it make of them?

`make test` compiles one or two blocks of each recipe; here stand all blocks of the largest, in FP32
and in INT8, with fresh weights and ranges from noise, which a builder does not look at.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from distill.recipe import load_recipe
from export.compile_check import compile_check, missing_packages
from export.layer_report import report_lines
from export.onnx_file import files_of
from export.onnx_graph import fp32_onnx_from_student
from tests.benchmarks.fresh_students import parameters_m, spec_for, student_for
from tests.benchmarks.int8_students import int8_file

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
    student, spec = student_for(recipe), spec_for(recipe)
    figures: dict = {"parameters, millions": parameters_m(student)}
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / f"{name}.fp32.onnx", Path(folder) / f"{name}.int8.onnx"
        began = time.monotonic()
        fp32_onnx_from_student(student, spec, fp32)
        figures["FP32"] = _figures_of(fp32, (), time.monotonic() - began)
        for path in files_of(fp32):
            path.unlink()
        began = time.monotonic()
        meant = int8_file(student, spec, int8)
        figures["INT8"] = _figures_of(int8, meant, time.monotonic() - began)
    compiles = figures["FP32"]["compiles"] and figures["INT8"]["compiles"]
    return {**figures, "compiles": compiles and figures["INT8"]["as meant"]}


def _figures_of(path: Path, meant: Sequence[str], export_s: float) -> dict:
    began = time.monotonic()
    check = compile_check(path, meant)
    made = check.compiled
    figures = {
        "file, GB": sum(file.stat().st_size for file in files_of(path)) / 1e9,
        "export, s": export_s,
        "compile, s": time.monotonic() - began,
        "kernels": check.layers,
        "kernels of a block, at most": max(made.kernels_by_block.values()) if made else None,
        "compiles": check.status == "passed",
        "as meant": made is not None and not made.not_int8 and not (meant and made.not_fused),
    }
    told = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in figures.items()
    )
    # FP32 was never meant to be fused: what falls short there says nothing.
    print(f"  {path.stem}: {told}", *(report_lines(check) if meant else ()), sep="\n  ", flush=True)
    return figures
