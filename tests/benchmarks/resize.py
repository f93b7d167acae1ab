"""One frame to scores: resized on the host and then scored, beside the graph that does both.

    python -m tests.benchmarks resize            of 1280x960 frames, on one thread and on two
    python -m tests.benchmarks resize --quick    fewer frames

The two variants are of one student, `tiny` with fresh weights, as FP32 and as INT8, and take the
same frames in turns, on onnxruntime's CPU. A frame is random blocks with fine noise. Beside the
times stand how far the scores lie apart, and how many kernels NVIDIA's builder makes of each.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from device_agents.engine.on_onnxruntime import engine_from_onnx
from distill.recipe import load_recipe
from distill.students.student import EMBEDDINGS, HEADS, Student
from edge.model_spec import ImageInput, ModelSpec
from edge.prepare import image_tensor, model_inputs
from edge.sample import Frame, Sample, Window
from edge.scorer import Engine
from export.compile_check import compile_check, missing_packages
from export.golden import SCORE_TOLERANCE
from export.onnx_graph import fp32_onnx_from_student
from export.parity import FP32_BUDGET
from export.quantize import int8_onnx_from_qdq
from tests.benchmarks.fresh_students import CHANNELS, READINGS, SIDE, spec_for, student_for
from tests.benchmarks.hot_loop import HEIGHT, WIDTH, frames_and_windows
from tests.benchmarks.int8_students import qdq_from_student

HOST, GRAPH = "resized on the host", "resized in the graph"
ALONE = "the host's resize alone"
FORMS = ("fp32", "int8")
THREADS = (1, 2)
_ROUNDS, _QUICK_ROUNDS = 60, 5
# FP32 as parity's budget says. INT8 with fresh weights and noise: as far as golden samples may be.
_MAY_BE_APART = {"fp32": FP32_BUDGET.score_error, "int8": SCORE_TOLERANCE}


def run(*, quick: bool = False) -> dict:
    """Print the table and return its figures; `kept`: the two score alike."""
    recipe = load_recipe("tiny")
    host = spec_for(recipe)
    specs = {HOST: host, GRAPH: msgspec.structs.replace(host, frame=ImageInput(HEIGHT, WIDTH))}
    student, samples = student_for(recipe), _samples()
    rounds = _QUICK_ROUNDS if quick else _ROUNDS
    figures: dict = {"kept": True}
    print(
        f"\nresize: {WIDTH}x{HEIGHT} to {SIDE}x{SIDE}, tiny, onnxruntime's CPU, p50 and p99 in ms"
    )
    with tempfile.TemporaryDirectory() as name:
        for form in FORMS:
            files = {kind: Path(name) / f"{form}-{place}" for place, kind in enumerate(specs)}
            _write(student, specs, form, files, samples)
            for threads in THREADS:
                found = _timed(files, specs, samples, threads, rounds)
                figures[f"{form}, {threads} threads"] = found
                figures["kept"] &= found["scores apart"] <= _MAY_BE_APART[form]
                _print(f"{form}, {threads} threads", found)
            figures[f"{form}, kernels"] = _kernels(files)
            print(f"  {form}, kernels by NVIDIA's builder: {figures[f'{form}, kernels']}")
    return figures


def _write(
    student: Student,
    specs: dict[str, ModelSpec],
    form: str,
    files: dict[str, Path],
    samples: Sequence[Sample],
) -> None:
    """Write both variants in one form, with the same ranges where it is INT8."""
    if form == "fp32":
        for kind, path in files.items():
            fp32_onnx_from_student(student, specs[kind], path)
        return
    seen = (model_inputs(sample, specs[HOST]) for sample in samples)
    qdq = qdq_from_student(student, specs[HOST], seen, kept_float=(*HEADS, *EMBEDDINGS))
    for kind, path in files.items():
        int8_onnx_from_qdq(qdq, specs[kind], path)


def _samples() -> list[Sample]:
    frames, windows = frames_and_windows()
    assert windows[0].shape == (len(CHANNELS), READINGS)
    return [
        Sample(f"p{place}", Frame(frame, 0), Window(windows[place], CHANNELS, 0))
        for place, frame in enumerate(frames)
    ]


def _timed(
    files: dict[str, Path],
    specs: dict[str, ModelSpec],
    samples: Sequence[Sample],
    threads: int,
    rounds: int,
) -> dict:
    """Time the parts of both, in turns, so that none has the quiet minute."""
    spent: dict[str, list[float]] = {kind: [] for kind in (*files, ALONE)}
    apart = 0.0
    with ExitStack() as loaded:
        engines = {
            kind: loaded.enter_context(engine_from_onnx(path, specs[kind], threads=threads))
            for kind, path in files.items()
        }
        for number in range(rounds):
            sample = samples[number % len(samples)]
            scores = {
                kind: _ms(spent[kind], partial(_score, engine, sample))
                for kind, engine in engines.items()
            }
            _ms(spent[ALONE], partial(image_tensor, sample.frame.pixels, specs[HOST].image))
            apart = max(apart, abs(scores[HOST] - scores[GRAPH]))
    figures: dict = {kind: _percentiles(times) for kind, times in spent.items()}
    return {**figures, "scores apart": apart}


def _score(engine: Engine, sample: Sample) -> float:
    return engine.score(model_inputs(sample, engine.spec)).anomaly_score


def _ms(spent: list[float], work: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    result = work()
    spent.append((time.perf_counter() - began) * 1e3)
    return result


def _percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": statistics.median(times_ms), "p99_ms": float(np.percentile(times_ms, 99))}


def _kernels(files: dict[str, Path]) -> dict[str, int | None]:
    if missing_packages():
        print(f"  NOT COMPILED, without {', '.join(missing_packages())}")
        return {}
    return {kind: compile_check(path).layers for kind, path in files.items()}


def _print(title: str, found: dict) -> None:
    print(f"  {title}: scores apart by {found['scores apart']:.1e}")
    for kind, times in found.items():
        if isinstance(times, dict):
            print(f"    {kind:24} p50 {times['p50_ms']:6.2f}  p99 {times['p99_ms']:6.2f}")
