"""The bench: how fast an engine turns inputs in host memory into scores in host memory.

    warm up -> every run timed -> a few runs taken apart -> a stretch at full speed, power read

It knows any `edge.scorer.Engine` and nothing of what runs inside. Percentiles are of single runs
(nearest rank), never of averages; p99.9 is given from 1,000 runs on, below it would be the longest
one under another name. Jitter is the mean distance from one run's time to the next one's (as RFC
3550, section 6.4.1, without its smoothing).
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.model_spec import ModelSpec
from edge.scorer import Engine, ModelInputs

WARM_UP_RUNS = 20
SPLIT_RUNS = 50
WAITS_INSIDE = "wait is not measured: this runtime launches and waits inside its own compute"
_PERMILLES = {"p50": 500, "p90": 900, "p99": 990, "p99_9": 999}
_POWER_EVERY_S = 0.1
_IDLE_S = 2.0  # power is read before the work, to tell what the work adds
_LEAST_READINGS = 5

ReadPower = Callable[[], Mapping[str, float]]  # watts by rail, empty where the board reports none


@dataclass(frozen=True)
class Latency:
    """Of single runs, in milliseconds."""

    p50: float
    p90: float
    p99: float
    p99_9: float | None  # None: fewer than 1,000 runs
    longest: float
    mean: float
    jitter: float


@dataclass(frozen=True)
class MeanSplit:
    """Where a run's time goes: the mean of `SPLIT_RUNS` runs, in milliseconds."""

    copy: float
    compute: float
    wait: float | None  # None: not to be told from compute, see `remark`
    remark: str = ""


@dataclass(frozen=True)
class Energy:
    """What the board reports while it works at full speed."""

    rail: str  # which one counts as all
    idle_watts: float
    busy_watts: float
    joules_per_sample: float  # of the whole board, what it takes when idle included


@dataclass(frozen=True)
class Figures:
    """What was measured of one engine."""

    engine: str
    runs: int
    batch: int
    latency_ms: Latency
    split_ms: MeanSplit
    samples_per_s: float
    energy: Energy | None  # None: this board reports no power


def measure(
    engine: Engine,
    inputs: Sequence[ModelInputs],
    *,
    runs: int,
    read_power: ReadPower = dict,
) -> Figures:
    """Measure `engine` on `inputs`, taken in turn, in full batches."""
    batches = _batches(inputs, engine.spec.batch)
    for run in range(WARM_UP_RUNS):
        engine.score_batch(batches[run % len(batches)])
    times_ms = []
    for run in range(runs):
        batch = batches[run % len(batches)]
        started_s = time.perf_counter()
        engine.score_batch(batch)
        times_ms.append((time.perf_counter() - started_s) * 1e3)
    split = _mean_split(engine, batches)
    samples_per_s, energy = _at_full_speed(engine, batches, sum(times_ms) / 1e3, read_power)
    return Figures(
        engine=engine.name,
        runs=runs,
        batch=engine.spec.batch,
        latency_ms=latency_of(times_ms),
        split_ms=split,
        samples_per_s=samples_per_s,
        energy=energy,
    )


def latency_of(times_ms: Sequence[float]) -> Latency:
    """Return the percentiles of single runs, in the order in which they ran."""
    ranked = sorted(times_ms)
    steps = [abs(after - before) for before, after in itertools.pairwise(times_ms)]
    found = {name: _nearest_rank(ranked, permille) for name, permille in _PERMILLES.items()}
    enough = len(ranked) >= 1000
    return Latency(
        p50=found["p50"],
        p90=found["p90"],
        p99=found["p99"],
        p99_9=found["p99_9"] if enough else None,
        longest=ranked[-1],
        mean=statistics.fmean(ranked),
        jitter=statistics.fmean(steps) if steps else 0.0,
    )


def invented_inputs(spec: ModelSpec, count: int = 8, seed: int = 0) -> list[ModelInputs]:
    """Return samples of noise: what an engine takes in time does not depend on what it sees."""
    chance = np.random.default_rng(seed)
    samples: list[ModelInputs] = []
    for _ in range(count):
        sample: dict[str, NDArray[Any]] = {}
        for tensor in spec.inputs():
            shape = (1, *tensor.shape[1:])
            if tensor.dtype == "uint8":
                sample[tensor.name] = chance.integers(0, 256, shape, dtype=np.uint8)
            elif tensor.name == "present":
                sample[tensor.name] = np.ones(shape, np.float32)
            else:
                sample[tensor.name] = chance.normal(size=shape).astype(np.float32)
        samples.append(sample)
    return samples


def _batches(inputs: Sequence[ModelInputs], batch: int) -> list[list[ModelInputs]]:
    count = len(inputs)
    return [[inputs[(start + place) % count] for place in range(batch)] for start in range(count)]


def _nearest_rank(ranked: Sequence[float], permille: int) -> float:
    """Return the smallest value that so many of a thousand do not exceed; in whole numbers."""
    return ranked[max(0, -(-permille * len(ranked) // 1000) - 1)]


def _mean_split(engine: Engine, batches: Sequence[Sequence[ModelInputs]]) -> MeanSplit:
    splits = [engine.split(batches[run % len(batches)]) for run in range(SPLIT_RUNS)]
    waits = [split.wait_ms for split in splits if split.wait_ms is not None]
    return MeanSplit(
        copy=statistics.fmean(split.copy_ms for split in splits),
        compute=statistics.fmean(split.compute_ms for split in splits),
        wait=statistics.fmean(waits) if waits else None,
        remark="" if waits else WAITS_INSIDE,
    )


def _at_full_speed(
    engine: Engine,
    batches: Sequence[Sequence[ModelInputs]],
    seconds: float,
    read_power: ReadPower,
) -> tuple[float, Energy | None]:
    """Run without a look at the clock between runs, about as long as the timed runs took."""
    idle = PowerLog(read_power)
    if read_power():
        with idle:
            time.sleep(_IDLE_S)
    done, busy, started_s = 0, PowerLog(read_power), time.perf_counter()
    with busy:
        while time.perf_counter() - started_s < seconds or not done:
            for batch in batches:
                engine.score_batch(batch)
            done += len(batches)
        took_s = time.perf_counter() - started_s
    samples_per_s = done * engine.spec.batch / took_s
    return samples_per_s, energy_of(idle.readings, busy.readings, samples_per_s)


def energy_of(
    idle: Sequence[Mapping[str, float]], busy: Sequence[Mapping[str, float]], samples_per_s: float
) -> Energy | None:
    """Return the energy of one sample; None where power was not read, or not often enough.

    An Orin NX or Nano reports its whole input on VDD_IN; an AGX Orin has no such rail, and all of
    its rails together come nearest.
    """
    if min(len(idle), len(busy)) < _LEAST_READINGS or not idle[0] or not busy[0]:
        return None
    rail = "VDD_IN" if "VDD_IN" in busy[0] else "sum of " + ", ".join(sorted(busy[0]))

    def watts(readings: Sequence[Mapping[str, float]]) -> float:
        return statistics.fmean(one.get(rail, sum(one.values())) for one in readings)

    return Energy(rail, watts(idle), watts(busy), watts(busy) / samples_per_s)


class PowerLog:
    """Reads the board's power in a thread of its own, between `with` and its end."""

    def __init__(self, read_power: ReadPower) -> None:
        self._read_power = read_power
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="power", daemon=True)
        self.readings: list[Mapping[str, float]] = []

    def _read(self) -> None:
        while not self._stop.wait(_POWER_EVERY_S):
            watts = self._read_power()
            if not watts:
                return
            self.readings.append(watts)

    def __enter__(self) -> PowerLog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
