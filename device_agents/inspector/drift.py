"""Drift: what comes in now against what the bundle's reference says normal parts looked like.

A flag in the inspection and in Health, never a changed verdict. Each figure is summed up over the
last `WINDOW` parts of a source and held against the reference in one of two ways:

    score_psi            the population stability index of the passed parts' anomaly scores
    embedding_shift      mean distance of the passed parts' embeddings to the reference's mean
    sensor_rms:NAME      deviation of a channel's readings
    sensor_range:NAME    its mean, or its largest distance from the mean
    focus                sharpness of the frames
    exposure             mean level, share of black and of white pixels

PSI = sum((p - q) ln(p / q)) over the reference's bins. 0.25 and more is read as a major shift: a
rule of thumb from credit scoring (Siddiqi, "Credit Risk Scorecards", 2006). It takes no account of
how few parts stand behind the shares: with n and N samples and no drift at all, PSI follows
(1/n + 1/N) chi2(bins - 1) (Yurdakul and Naranjo, "Statistical properties of the population
stability index", Journal of Risk Model Validation 14(4), 2020). So the limit is 0.25, or what
chance exceeds once in ten thousand, whichever is higher.

Every other figure counts as moved when its mean (of the middle eighty percent of the window) lies
one deviation of the reference away from the reference's, or `_SIGMAS` standard errors, whichever
is more: what is within the parts' own variety is no drift, however sure it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from device_agents.pairing.pair import Paired
from edge.errors import InputError
from edge.model_spec import ModelSpec
from edge.reference import (
    ChannelReference,
    EmbeddingReference,
    FrameFigures,
    FrameReference,
    Reference,
    ScoreReference,
    Spread,
    WindowFigures,
    frame_figures,
    middle_of,
    misfit_of,
    window_figures,
)
from edge.sample import Sample, Window
from edge.scorer import Scores
from edge.verdict import Verdict

WINDOW = 200  # parts that a figure is summed up over
LEAST = 50  # and the fewest that are
EVERY = 10  # parts from one look at the figures to the next
PSI_LIMIT = 0.25
SHIFT_LIMIT = 1.0  # deviations of the reference
CLEARED = 0.7  # of its limit: below it a standing flag falls, so that none flutters
FAR_OUT = 3.0  # spans of the reference's range beyond it: one such window is told at once
_SIGMAS = 5.0
_CHANCE_Z = 3.719  # the normal quantile of one in ten thousand
# The least deviation of each figure: a reference of few or very even parts shows too small a one.
_FOCUS_LEAST, _LEVEL_LEAST, _SHARE_LEAST = 0.1, 0.02, 0.02
_RMS_LEAST, _PEAK_LEAST = 0.1, 0.2  # natural logarithms: about a tenth and a fifth
_DISTANCE_LEAST = 0.05  # of the reference's mean distance


class Drift:
    """Watches each source of a station against the bundle's reference.

    Raises InputError where that is of another model. Without a reference nothing is flagged.
    """

    def __init__(self, reference: Reference | None, spec: ModelSpec) -> None:
        misfit = "" if reference is None else misfit_of(reference, spec)
        if misfit:
            raise InputError(
                where="the bundle's manifest",
                expected="a reference of the bundle's own model",
                found=misfit,
                do="Export the bundle again; `edge verify` looks at the rest of it.",
            )
        self._reference = reference
        self._spec = spec
        self._sources: dict[str, _Source] = {}

    @property
    def flags(self) -> tuple[str, ...]:
        """What is unlike the reference now, of all sources together. For any thread to ask."""
        return tuple(
            sorted({flag for source in list(self._sources.values()) for flag in source.flags})
        )

    def see(self, paired: Paired, scores: Scores, verdict: Verdict) -> tuple[str, ...]:
        """Take note of one judged part; return what is unlike the reference, by name."""
        if self._reference is None:
            return ()
        if paired.source not in self._sources:
            self._sources[paired.source] = _Source(self._reference, self._spec)
        return self._sources[paired.source].see(paired.sample, scores, verdict)


class _Source:
    """One source's figures."""

    def __init__(self, reference: Reference, spec: ModelSpec) -> None:
        self._takes_sensor = spec.sensor is not None
        self._frames = _Frames(reference.frame, reference.samples)
        self._sensors = _Sensors(reference.channels, reference.samples)
        self._scores = None if reference.scores is None else _Psi(reference.scores)
        self._embeddings = (
            _Embeddings(reference.embedding, reference.samples) if reference.embedding else None
        )
        self.flags: tuple[str, ...] = ()

    def see(self, sample: Sample, scores: Scores, verdict: Verdict) -> tuple[str, ...]:
        """Note each figure that this part has; a part without a window has no sensor figures."""
        far_out: tuple[str, ...] = ()
        self._frames.add(sample)
        if sample.window is not None:
            far_out = self._sensors.add(sample.window)
        whole = sample.window is not None or not self._takes_sensor
        if whole and verdict.decision == "pass":
            if self._scores is not None:
                self._scores.add(scores.anomaly_score)
            if self._embeddings is not None:
                self._embeddings.add(scores.embedding)
        watched = (self._frames.moved, self._sensors.moved)
        flags = {flag for moved in watched for flag in moved.flags}
        if self._scores is not None and self._scores.standing:
            flags.add("score_psi")
        if self._embeddings is not None:
            flags.update(self._embeddings.moved.flags)
        self.flags = tuple(sorted(flags))
        return tuple(sorted({*flags, *far_out})) if far_out else self.flags


class _Moved:
    """Means of figures over the last parts, each against its spread in the reference.

    `figures` are (flag, spread, least deviation, whether only growth counts).
    """

    def __init__(self, figures: list[tuple[str, Spread, float, bool]], samples: int) -> None:
        self._names = [name for name, *_ in figures]
        self._middle_F = np.array([spread.middle for _, spread, _, _ in figures])
        self._deviation_F = np.array([max(s.deviation, least) for _, s, least, _ in figures])
        self._growth_F = np.array([growth for *_, growth in figures], dtype=bool)
        self._samples = samples
        self._last_FN = np.zeros((len(figures), WINDOW))
        self._standing_F = np.zeros(len(figures), dtype=bool)
        self._seen = 0
        self.flags: frozenset[str] = frozenset()

    def add(self, figures: NDArray[np.float64] | list[float]) -> None:
        """Note one part's figures; look at all of them once in `EVERY` parts."""
        self._last_FN[:, self._seen % WINDOW] = figures
        self._seen += 1
        if self._seen < LEAST or self._seen % EVERY:
            return
        count = min(self._seen, WINDOW)
        shift_F = (middle_of(self._last_FN[:, :count]) - self._middle_F) / self._deviation_F
        shift_F = np.where(self._growth_F, shift_F, np.abs(shift_F))
        limit = max(SHIFT_LIMIT, _SIGMAS * math.sqrt(1 / count + 1 / max(1, self._samples)))
        self._standing_F = shift_F >= np.where(self._standing_F, CLEARED * limit, limit)
        standing = self._standing_F.tolist()
        self.flags = frozenset(n for n, up in zip(self._names, standing, strict=True) if up)


class _Frames:
    """Focus and exposure of the frames."""

    def __init__(self, reference: FrameReference, samples: int) -> None:
        self._reference = reference
        self.moved = _Moved(
            [
                ("focus", reference.focus, _FOCUS_LEAST, False),
                ("exposure", reference.level, _LEVEL_LEAST, False),
                ("exposure", reference.black, _SHARE_LEAST, True),
                ("exposure", reference.white, _SHARE_LEAST, True),
            ],
            samples,
        )

    def add(self, sample: Sample) -> None:
        pixels = sample.frame.pixels
        found: FrameFigures = frame_figures(pixels)
        comparable = self._reference.is_of_size(max(pixels.shape[:2]))
        focus = found.focus if comparable else self._reference.focus.middle
        self.moved.add([focus, found.level, found.black, found.white])


class _Sensors:
    """Level, deviation and peak of each channel."""

    def __init__(self, channels: tuple[ChannelReference, ...], samples: int) -> None:
        self._names = [channel.name for channel in channels]
        low, high = np.array([[channel.low, channel.high] for channel in channels] or [[0, 0]]).T
        self._low_C = low - FAR_OUT * (high - low)
        self._high_C = high + FAR_OUT * (high - low)
        self.moved = _Moved(list(_figures_of(channels)), samples)

    def add(self, window: Window) -> tuple[str, ...]:
        """Note one window; return the channels that are far out of the reference's range."""
        if not self._names:
            return ()
        found: WindowFigures = window_figures(window.values)
        self.moved.add(np.concatenate([found.level, found.rms, found.peak]))
        out_C = (found.low < self._low_C) | (found.high > self._high_C)
        if not out_C.any():
            return ()
        return tuple(f"sensor_range:{self._names[index]}" for index in np.flatnonzero(out_C))


def _figures_of(
    channels: tuple[ChannelReference, ...],
) -> Iterator[tuple[str, Spread, float, bool]]:
    """Yield every channel's level, then its deviation, then its peak, as `_Sensors.add` does."""
    for channel in channels:
        # A mean that moves by a quarter of the readings' own deviation is worth a look.
        least = math.exp(channel.rms.middle) / 4
        yield f"sensor_range:{channel.name}", channel.level, least, False
    for channel in channels:
        yield f"sensor_rms:{channel.name}", channel.rms, _RMS_LEAST, False
    for channel in channels:
        yield f"sensor_range:{channel.name}", channel.peak, _PEAK_LEAST, False


class _Embeddings:
    """Distance of the passed parts' embeddings to the reference's mean."""

    def __init__(self, reference: EmbeddingReference, samples: int) -> None:
        self._mean_D = np.array(reference.mean, dtype=np.float32)
        least = _DISTANCE_LEAST * reference.distance.middle
        self.moved = _Moved([("embedding_shift", reference.distance, least, True)], samples)

    def add(self, embedding_D: NDArray[np.float32]) -> None:
        apart_D = embedding_D - self._mean_D
        squared = float(apart_D @ apart_D)
        if math.isfinite(squared):
            self.moved.add([math.sqrt(squared)])


class _Psi:
    """Population stability index of the passed parts' scores."""

    def __init__(self, reference: ScoreReference) -> None:
        self._edges = np.array(reference.edges)
        self._bins = len(reference.shares)
        self._samples = max(1, reference.samples)
        self._expected_B = _smoothed(np.array(reference.shares) * self._samples)
        self._last_N = np.zeros(WINDOW, dtype=np.intp)
        self._seen = 0
        self.standing = False

    def add(self, score: float) -> None:
        if not math.isfinite(score):
            return
        self._last_N[self._seen % WINDOW] = np.searchsorted(self._edges, score, side="right")
        self._seen += 1
        if self._bins < 2 or self._seen < LEAST or self._seen % EVERY:
            return
        count = min(self._seen, WINDOW)
        found_B = _smoothed(np.bincount(self._last_N[:count], minlength=self._bins))
        psi = float(((found_B - self._expected_B) * np.log(found_B / self._expected_B)).sum())
        chance = (1 / count + 1 / self._samples) * _chi_square_limit(self._bins - 1)
        limit = max(PSI_LIMIT, chance)
        self.standing = psi >= (CLEARED * limit if self.standing else limit)


def _smoothed(counts_B: NDArray[np.float64] | NDArray[np.intp]) -> NDArray[np.float64]:
    """Return shares of which none is 0: half a part is added to each bin."""
    return np.asarray((counts_B + 0.5) / (counts_B.sum() + 0.5 * len(counts_B)))


def _chi_square_limit(freedom: int) -> float:
    """Return what chi square exceeds once in ten thousand (Wilson and Hilferty, PNAS 1931)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + _CHANCE_Z * math.sqrt(spread)) ** 3
