"""Choices made by measurement: the calibration method, SmoothQuant's strength, the order of layers.

What is measured is what the verdict hangs on: how far the anomaly score moves, in log odds, so
that a score near 0 or 1 counts as one near the threshold does. The samples are training samples,
beside those that the ranges come from where there are enough; the held-out samples that prove
parity are never asked.

A layer's effect is measured with that layer alone in int8 and all else float: the reference is
then free of other layers' noise, so that a few samples show small effects, and small errors add
up in log odds. (Leaving one layer out of a whole int8 student asks the same of a difference
between two noisy numbers.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from edge.scorer import ModelInputs
from export.quantization.prepared import PreparedStudent, Unit
from export.quantization.ranges import METHODS, Method
from export.quantization.smoothing import fold, joints_of

MEASURED_SAMPLES = 32
_LARGE, _SAMPLES_OF_LARGE = 100_000_000, 8
STRENGTHS = (0.35, 0.5, 0.65, 0.8)
_HELPS = 0.9  # smoothing stays only where scores move at most this share of what they did
_RUNS = 1024  # of the student, for the order of layers: many layers are seen on fewer samples
_LEAST_SAMPLES = 4
_LEAST_ODDS = 1e-6

Progress = Callable[[Iterable[ModelInputs]], Iterable[ModelInputs]]


@dataclass(frozen=True)
class Effect:
    """How far scores move (mean, log odds) with one unit alone in int8."""

    unit: Unit
    movement: float


def measured_samples(student: nn.Module) -> int:
    """Return how many samples choices are measured on: fewer where each costs seconds."""
    large = sum(parameter.numel() for parameter in student.parameters()) > _LARGE
    return _SAMPLES_OF_LARGE if large else MEASURED_SAMPLES


class Measure:
    """The samples that choices are made on, and what float says of them.

    Holds the inputs of at most `MEASURED_SAMPLES` samples.
    """

    def __init__(self, prepared: PreparedStudent, samples: Sequence[ModelInputs]) -> None:
        assert samples, "a choice by measurement needs a sample"
        self._prepared = prepared
        self.samples = tuple(samples)
        self._float = [_log_odds(prepared.score(inputs).anomaly_score) for inputs in samples]

    def movement(self, units: Iterable[Unit] | None = None, *, samples: int | None = None) -> float:
        """Return the mean movement of the score, log odds, with `units` (all) in int8."""
        chosen = self._prepared.units if units is None else tuple(units)
        with self._prepared.playing("int8", chosen):
            moved = [
                abs(_log_odds(self._prepared.score(inputs).anomaly_score) - before)
                for inputs, before in zip(
                    self.samples[:samples], self._float[:samples], strict=True
                )
            ]
        return float(np.mean(moved))


def choose_method(prepared: PreparedStudent, measure: Measure) -> dict[Method, float]:
    """Settle the method by which scores move least; return what each one moved."""
    movements: dict[Method, float] = {}
    for method in METHODS:
        prepared.settle(method)
        movements[method] = measure.movement()
    prepared.settle(min(movements, key=lambda method: movements[method]))
    return movements


def choose_strength(prepared: PreparedStudent, measure: Measure) -> dict[float, float]:
    """Fold the smoothing by which scores move least, or none; return what each strength moved.

    The key 0 stands for none. Each strength, and none, is tried with ranges of the measured samples
    themselves, so that all are tried alike; where one stays folded, the caller watches the whole
    calibration set again.
    """
    joints, memory = joints_of(prepared), prepared.memory()
    if not joints:
        return {0.0: measure.movement()}
    movements: dict[float, float] = {}
    for strength in (0.0, *STRENGTHS):
        fold(prepared, joints, strength)
        prepared.watch(measure.samples)
        movements[strength] = measure.movement()
    fold(prepared, joints, strength_of(movements))
    if strength_of(movements) == 0.0:
        prepared.recall(memory)
    return movements


def strength_of(movements: dict[float, float]) -> float:
    """Return the strength that moved scores least, 0 where none helps enough to be worth it."""
    best = min(movements, key=lambda strength: movements[strength])
    return best if movements[best] <= _HELPS * movements[0.0] else 0.0


def effects_of(prepared: PreparedStudent, measure: Measure) -> list[Effect]:
    """Rank the units, the one that moves scores most first."""
    samples = max(_LEAST_SAMPLES, min(len(measure.samples), _RUNS // len(prepared.units)))
    effects = [Effect(unit, measure.movement([unit], samples=samples)) for unit in prepared.units]
    return sorted(effects, key=lambda effect: -effect.movement)


def _log_odds(score: float) -> float:
    if not math.isfinite(score):
        return 2.0 * math.log(1.0 / _LEAST_ODDS)  # further than any score, and still a number
    inside = min(max(score, _LEAST_ODDS), 1.0 - _LEAST_ODDS)
    return math.log(inside / (1.0 - inside))
