"""Ours beside nvidia-modelopt's ONNX PTQ: the same student, the same FP32 file, the same samples.

    python -m tests.benchmarks modelopt             600m; modelopt outgrows 24 GB: run it alone
    python -m tests.benchmarks modelopt --quick     two blocks of the recipe base

Ours goes from the checkpoint to the packed bundle, its FP32 export included; modelopt goes from
that FP32 file to its INT8 file as its command line does by default, on the CPU. Both calibrate on
the same inputs by entropy: modelopt's default, and our `edge export --calibration-method entropy
--smooth off` without parity and compile check. Each runs in a process of its own, whose wall time
and highest memory count.

The student has random weights, for nobody trains 600 million parameters for a benchmark: agreement
says how much quantisation disturbs a network of that size, not how good a verdict is. The verdict
is "above the median of FP32's own scores", which half of the samples are.

modelopt lives in a virtual environment of its own: made once, in the cache folder, or the one whose
python MODELOPT_PYTHON names.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from edge.bundle import FP32_FILE, INT8_FILE
from edge.onnx_weights import weight_files_of
from tests.benchmarks.machine import Spent, spent_by
from tests.benchmarks.modelopt_steps import BUNDLE, SAMPLES
from tests.benchmarks.work import cache

REPOSITORY = Path(__file__).parents[2]
MODELOPT = "nvidia-modelopt[onnx]==0.47.*"  # Apache-2.0
LARGE, QUICK = ("600m",), ("base", "student.joint_depth=2")
METHOD = "entropy"
THREADS = 2
FINISHED = "finished"
GOALS = {"seconds": 0.25, "peak_gb": 0.25, "file_gb": 0.55}  # ours to theirs, at most


def run(*, quick: bool = False) -> dict:
    """Measure both, print ratios, and return the figures; ours stand even where modelopt fails."""
    python, its_version = environment()
    with tempfile.TemporaryDirectory(dir=cache(), prefix="modelopt-run-") as name:
        folder = Path(name)
        figures = _answer(_step("prepare", folder, *(QUICK if quick else LARGE)))
        print(
            f"\n{figures['parameters_m']:.0f} M parameters (random), {figures['inputs']} inputs to "
            f"calibrate on, {METHOD}, {THREADS} threads",
            flush=True,
        )
        fp32, int8 = folder / BUNDLE / FP32_FILE, folder / BUNDLE / INT8_FILE
        spent = _step("ours", folder, METHOD, THREADS)
        figures["ours"] = {**_figures(spent, int8), "steps": _answer(spent)}
        _print_figures("ours", figures["ours"])
        reference = _scores(folder, fp32)
        figures["ours"] |= _print_movement(reference, _scores(folder, int8))
        if not python:
            print(f"  NOT COMPARED: nvidia-modelopt {its_version}")
            return {**figures, "kept": True}
        other = folder / "modelopt" / "model.onnx"
        figures["modelopt"] = _figures(quantised_by(python, fp32, folder / SAMPLES, other), other)
        _print_figures(f"nvidia-modelopt {its_version}", figures["modelopt"])
        if figures["modelopt"]["fate"] == FINISHED:
            figures["modelopt"] |= _print_movement(reference, _scores(folder, other))
    return {**figures, "modelopt_version": its_version, **compared(figures, quick=quick)}


def environment() -> tuple[str, str]:
    """Return modelopt's python and version; no python and the reason where it cannot be had."""
    named = os.environ.get("MODELOPT_PYTHON", "")
    if named:
        its_version = _version(named)
        return (named, its_version) if its_version else ("", f"is not in {named}")
    made = cache() / "modelopt"
    python = made / "bin" / "python"
    if not _version(python):
        print(f"making {made} with {MODELOPT} (once, some minutes)", flush=True)
        # Our own build of torch, for otherwise pip takes the one with gigabytes of CUDA.
        words = ["-m", "pip", "install", "--quiet", f"torch=={version('torch')}", MODELOPT]
        for command in ([sys.executable, "-m", "venv", made], [python, *words]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return "", f"could not be installed: {done.stderr.strip()[-300:]}"
    return str(python), _version(python)


def _version(python: str | Path) -> str:
    ask = "import importlib.metadata as m; print(m.version('nvidia-modelopt'))"
    try:
        done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def quantised_by(python: str, fp32: Path, samples: Path, out: Path) -> Spent:
    """Have modelopt's own command line quantise the file, on the CPU and else by its defaults."""
    out.parent.mkdir()
    command = [python, "-m", "modelopt.onnx.quantization", "--quantize_mode", "int8"]
    command += ["--calibration_method", METHOD, "--calibration_data_path", samples]
    command += ["--calibration_eps", "cpu", "--onnx_path", fp32, "--output_path", out]
    if weight_files_of(fp32):
        command.append("--use_external_data_format")
    # Its temporary files beside ours: the folder for such things may be in memory.
    own = {"OMP_NUM_THREADS": str(THREADS), "TMPDIR": str(out.parent)}
    return spent_by(command, environment=own, folder=out.parent)


def compared(figures: dict, *, quick: bool) -> dict:
    """Print and return ours over theirs; kept is what does not depend on the machine.

    The goals are the large student's: of a small one, what every process takes is most.
    """
    ours, theirs = figures["ours"], figures["modelopt"]
    if theirs["fate"] != FINISHED:
        print(f"  modelopt did not finish: at least {theirs['peak_gb']:.2f} GB until then")
        return {"kept": True}
    ratios = {name: ours[name] / theirs[name] for name in GOALS}
    for name, ratio in ratios.items():
        held = "kept" if ratio <= GOALS[name] else "MISSED"
        goal = "" if quick else f" (goal: at most {GOALS[name]}, {held})"
        print(f"  ours to modelopt's, {name:8} {ratio:.3f}{goal}")
    agrees = ours["agreement"] >= theirs["agreement"]
    print(f"  ours agrees with FP32 at least as often: {'kept' if agrees else 'MISSED'}")
    small = quick or ratios["file_gb"] <= GOALS["file_gb"]
    return {"ratios": ratios, "kept": agrees and small}


def movement(reference: list[float], scores: list[float]) -> dict[str, float]:
    """Return the share of samples on FP32's side of FP32's median, and the scores' movement.

    The movement is the mean change of the log odds, beside which FP32's own spread over the samples
    says what it means.
    """
    median = statistics.median(reference)
    same = [
        (one > median) == (other > median) for one, other in zip(reference, scores, strict=True)
    ]
    odds, moved = ([math.log(s / (1 - s)) for s in side] for side in (reference, scores))
    changes = [abs(one - other) for one, other in zip(odds, moved, strict=True)]
    return {
        "agreement": sum(same) / len(same),
        "moved_log_odds": statistics.mean(changes),
        "spread_log_odds": statistics.pstdev(odds),
    }


def _step(step: str, folder: Path, *words: object) -> Spent:
    """Run one of our own steps; RuntimeError where it fails, for then there is nothing to show."""
    command = [sys.executable, "-m", "tests.benchmarks.modelopt_steps", step, folder, *words]
    spent = spent_by(command, environment={"OMP_NUM_THREADS": str(THREADS)}, folder=REPOSITORY)
    if spent.fate != FINISHED:
        raise RuntimeError(f"{step}: {spent.fate}; {spent.peak_bytes / 1e9:.2f} GB until then")
    return spent


def _answer(spent: Spent) -> dict:
    answer: dict = json.loads(spent.answer)
    return answer


def _scores(folder: Path, file: Path) -> list[float]:
    scores: list[float] = _answer(_step("scores", folder, file, THREADS))["scores"]
    return scores


def _figures(spent: Spent, file: Path) -> dict:
    there = [file, *(file.parent / name for name in weight_files_of(file))] if file.exists() else []
    return {
        "fate": spent.fate,
        "seconds": spent.seconds,
        "peak_gb": spent.peak_bytes / 1e9,
        "file_gb": sum(path.stat().st_size for path in there) / 1e9,
    }


def _print_figures(whose: str, figures: dict) -> None:
    print(
        f"  {whose}: {figures['fate']}, {figures['seconds']:.1f} s, peak "
        f"{figures['peak_gb']:.2f} GB, INT8 file {figures['file_gb']:.3f} GB"
    )
    for step, so_far in figures.get("steps", {}).items():
        print(f"    {step:16} after {so_far['at_s']:6.1f} s, peak {so_far['peak_gb']:.2f} GB")


def _print_movement(reference: list[float], scores: list[float]) -> dict[str, float]:
    found = movement(reference, scores)
    print(
        f"    verdicts as FP32's: {found['agreement']:.1%}; scores moved by "
        f"{found['moved_log_odds']:.4f} log odds where they spread by "
        f"{found['spread_log_odds']:.4f}",
        flush=True,
    )
    return found
