"""What pairing and drift cost a part: cut and resample 2 x 2048 readings, look, and watch.

The named alternative for the resampling is `scipy.signal.resample_poly`, which is no library of
the device; it runs here on the host only, by its default filter, which is shorter and less steep
than ours (Kaiser 5.0, ten readings of the lower rate to either side). One part at a time.
"""

import statistics
import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from scipy.signal import resample_poly

from device_agents.inspector.drift import WINDOW, Drift
from device_agents.pairing.pair import Paired, pair
from device_agents.pairing.plausible import Plausibility
from device_agents.pairing.resample import resampler_for
from device_agents.parts import Reading, Shot
from edge.model_spec import ImageInput, ModelSpec, SensorInput
from edge.reference import (
    FrameReference,
    Reference,
    channel_reference,
    embedding_reference,
    frame_figures,
    score_reference,
    spread_of,
    window_figures,
)
from edge.sample import Channel, Frame, Window
from edge.scorer import Scores
from edge.verdict import DecisionRule, Threshold, Verdict

MODEL_HZ, READINGS = 12_000.0, 2048
HEIGHT, WIDTH, EMBEDDING = 960, 1280, 256
RATES_HZ = (12_000.0, 48_000.0, 25_600.0, 44_100.0)
_PARTS = 400
_FRAMES = 24  # 88 MB in turn: no frame lies in a cache when it is its turn again


def run() -> bool:
    """Print the costs and their ratios; nothing here is promised, so nothing can be broken."""
    rng = np.random.default_rng(0)
    spec = _spec()
    frames = [
        Frame(rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8), 0) for _ in range(_FRAMES)
    ]
    print("\npairing and drift, 2 x 2048 readings out, ms a part (p50, p99)")
    for rate_hz in RATES_HZ:
        _print_pairing(spec, frames, rate_hz, rng)
    _print_drift(spec, frames, rng)
    return True


def _spec() -> ModelSpec:
    channels = (Channel("drive_end", "g", MODEL_HZ), Channel("fan_end", "g", MODEL_HZ))
    threshold = Threshold(0.5, 0.01, 200, True)
    return ModelSpec(
        name="bench",
        image=ImageInput(HEIGHT, WIDTH),
        sensor=SensorInput(channels, READINGS),
        classes=("ok", "bad"),
        map_height=4,
        map_width=4,
        embedding_size=EMBEDDING,
        rule=DecisionRule(threshold, threshold),
    )


def _print_pairing(
    spec: ModelSpec, frames: list[Frame], rate_hz: float, rng: np.random.Generator
) -> None:
    """Cut out of a window half as long again, as a sensor's ring buffer gives it."""
    readings = int(1.5 * READINGS * rate_hz / MODEL_HZ)
    channels = tuple(Channel(c.name, c.unit, rate_hz) for c in spec.sensor.channels)
    windows = [
        Window(rng.normal(size=(2, readings)).astype(np.float32), channels, 0) for _ in range(8)
    ]
    shots = [Shot("p", "p", None, frame) for frame in frames]
    plausibility = Plausibility()

    def one(number: int) -> None:
        reading = Reading(windows[number % len(windows)])
        made = pair(shots[number % len(shots)], reading, spec, 5.0, plausibility)
        assert isinstance(made, Paired)
        assert made.sample.window is not None

    ours = _timed(one)
    print(f"  cut from {rate_hz:6.0f} Hz, looked at     {_text(ours)}")
    if rate_hz == MODEL_HZ:
        return
    ratio = Fraction(MODEL_HZ) / Fraction(rate_hz)
    part = int(READINGS * rate_hz / MODEL_HZ)
    resampler = resampler_for(rate_hz, MODEL_HZ, READINGS)
    alone = _timed(
        lambda number: resampler.resampled(windows[number % len(windows)].values, resampler.margin)
    )

    def scipys(number: int) -> None:
        values = windows[number % len(windows)].values[:, :part]
        resample_poly(values, ratio.numerator, ratio.denominator, axis=1)

    theirs = _timed(scipys)
    times = statistics.median(theirs) / statistics.median(alone)
    print(f"    of it the resampling            {_text(alone)}")
    print(f"    scipy's resample_poly           {_text(theirs)}   {times:.1f} x our resampling")


def _print_drift(spec: ModelSpec, frames: list[Frame], rng: np.random.Generator) -> None:
    windows = [rng.normal(size=(2, READINGS)).astype(np.float32) for _ in range(64)]
    embeddings = rng.normal(size=(64, EMBEDDING)).astype(np.float32)
    drift = Drift(_reference(frames, windows, embeddings, rng), spec)
    pairings = [
        pair(Shot("p", "p", None, frame), Reading(Window(w, spec.sensor.channels, 0)), spec, 5.0)
        for frame, w in zip(frames, windows, strict=False)
    ]
    class_scores, heat_map = np.float32([1, 0]), np.zeros((4, 4), np.float32)
    verdict = Verdict("pass", "ok", 0.1, 0.5)

    def one(number: int) -> None:
        scores = Scores(class_scores, rng.random(), heat_map, embeddings[number % 64])
        drift.see(pairings[number % len(pairings)], scores, verdict)

    for number in range(WINDOW):  # a full window is the dear one
        one(number)
    spent = _timed(one)
    print(f"  drift at {WIDTH}x{HEIGHT}, 2 channels   {_text(spent)}, mean {_mean(spent):.3f}")


def _reference(
    frames: list[Frame],
    windows: list[np.ndarray],
    embeddings: np.ndarray,
    rng: np.random.Generator,
) -> Reference:
    seen = [frame_figures(frame.pixels) for frame in frames]
    figures = [window_figures(window) for window in windows]
    spreads = [
        spread_of(np.array([getattr(one, name) for one in seen]))
        for name in ("focus", "level", "black", "white")
    ]
    return Reference(
        split="val",
        samples=len(windows),
        parts=len(windows),
        frame=FrameReference((WIDTH, WIDTH), *spreads),
        scores=score_reference(rng.random(200)),
        embedding=embedding_reference(embeddings),
        channels=tuple(
            channel_reference(name, [window[index] for window in windows], figures, index)
            for index, name in enumerate(("drive_end", "fan_end"))
        ),
    )


def _timed(one: Callable[[int], None]) -> list[float]:
    """Return the milliseconds of each call, the first few left out."""
    spent = []
    for number in range(_PARTS):
        started = time.perf_counter()
        one(number)
        spent.append((time.perf_counter() - started) * 1e3)
    return spent[_PARTS // 20 :]


def _mean(spent: list[float]) -> float:
    return statistics.fmean(spent)


def _text(spent: list[float]) -> str:
    return f"{statistics.median(spent):6.3f} {np.quantile(spent, 0.99):6.3f}"
