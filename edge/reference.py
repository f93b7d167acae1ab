"""The bundle's reference: what held-out normal parts looked like when the model was exported.

The host measures it, the device's inspector holds every part against it (drift), and both
take their figures of a frame and of a window from the functions here, so that they cannot differ.
A reference never changes a verdict: the rule in `edge.verdict` does not know it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.model_spec import ModelSpec
from edge.readings import longest_run, rail_share

FRAME_ROWS = 8  # stretches of three adjacent rows, spread evenly over the frame
_BLACK, _WHITE = 3, 252  # 8-bit levels below and above which a pixel shows nothing
_SIZE_SHARE = 0.1  # frames within this share of each other's size are sharp in the same sense
_QUIET = 1e-9  # keeps a logarithm finite; far below any reading that means something


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One figure over many parts: the mean of its middle eighty percent, and its deviation."""

    middle: float
    deviation: Annotated[float, msgspec.Meta(ge=0)]


class ScoreReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A histogram of the anomaly scores of `samples` samples that passed.

    `shares` has one more entry than `edges`; bins are closed below and open above.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    samples: int

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.edges) + 1 or min(self.shares) < 0:
            raise ValueError("shares must be one more than edges, and none below 0")
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("edges must grow")


class EmbeddingReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mean embedding, and how far (Euclid) normal parts lie from it."""

    mean: tuple[float, ...]
    distance: Spread


class FrameReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Focus and exposure of the frames, see `FrameFigures`. `longest_side` in pixels: (from, to).

    Focus depends on how many pixels a part is across: a frame of another size has none to compare.
    """

    longest_side: tuple[int, int]
    focus: Spread
    level: Spread
    black: Spread
    white: Spread

    def is_of_size(self, longest_side: int) -> bool:
        """Say whether the focus of a frame this many pixels long compares with these frames'."""
        smallest, largest = self.longest_side
        return (1 - _SIZE_SHARE) * smallest <= longest_side <= (1 + _SIZE_SHARE) * largest


class ChannelReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One channel's windows, see `WindowFigures`. `low` and `high`: the extremes that were seen.

    `longest_run` and `at_rail` are shares of a window that nine of ten windows stay under: a
    channel that stands still, or clips, in the data it was trained on does so by nature.
    """

    name: str
    low: float
    high: float
    level: Spread
    rms: Spread
    peak: Spread
    longest_run: float
    at_rail: float


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `samples` held-out normal samples of `parts` parts looked like to the INT8 model.

    Scores and embeddings are of those that were judged with every modality, and passed; None where
    these were too few.
    """

    split: str
    samples: int
    parts: int
    frame: FrameReference
    scores: ScoreReference | None = None
    embedding: EmbeddingReference | None = None
    channels: tuple[ChannelReference, ...] = ()

    def __str__(self) -> str:
        holds = [f"{len(self.scores.shares)} score bins"] if self.scores else []
        if self.embedding:
            holds.append(f"embedding of {len(self.embedding.mean)}")
        holds += [*(channel.name for channel in self.channels), "frames"]
        measured = {"scores": self.scores, "an embedding": self.embedding}
        missing = " and ".join(name for name, found in measured.items() if found is None)
        text = f"{self.samples} normal samples of {self.parts} parts, split '{self.split}' "
        text += f"({', '.join(holds)}{f'; too few for {missing}' if missing else ''})"
        if self.parts < ENOUGH_PARTS:
            text += f": fewer than {ENOUGH_PARTS}, so that other good parts may look like drift"
        return text


ENOUGH_PARTS = 50  # fewer may not show how much good parts differ


def misfit_of(reference: Reference, spec: ModelSpec) -> str:
    """Say in what a reference is of another model than the spec's; empty where it is of this."""
    channels = () if spec.sensor is None else spec.sensor.channels
    names = [channel.name for channel in channels]
    measured = [channel.name for channel in reference.channels]
    if measured not in ([], names):
        return f"a reference of channels {', '.join(measured)}, not {', '.join(names) or 'none'}"
    numbers = spec.embedding_size if reference.embedding is None else len(reference.embedding.mean)
    if numbers != spec.embedding_size:
        return f"a reference of embeddings of {numbers} numbers, not {spec.embedding_size}"
    return ""


SCORE_BINS = 10  # deciles, or fewer where fewer than `SAMPLES_PER_BIN` would make one
SAMPLES_PER_BIN = 10


@dataclass(frozen=True)
class FrameFigures:
    """Focus and exposure of one frame, from `FRAME_ROWS` stretches of its green channel."""

    focus: float  # log of the Laplacian's variance over that of the levels: no matter how bright
    level: float  # mean, 0..1
    black: float  # share of pixels too dark to show anything
    white: float  # share of pixels too bright


@dataclass(frozen=True)
class WindowFigures:
    """Sensor readings of one window, channel by channel."""

    level: NDArray[np.float64]  # [C], mean, in the channel's unit
    rms: NDArray[np.float64]  # [C], log of the deviation from the mean
    peak: NDArray[np.float64]  # [C], log of the largest distance from the mean
    low: NDArray[np.float32]  # [C]
    high: NDArray[np.float32]  # [C]


def frame_figures(pixels: NDArray[np.uint8]) -> FrameFigures:
    """Measure uint8 pixels [H, W, 3]; the same rows are taken whatever the content.

    The variance of the Laplacian as a measure of focus: Pech-Pacheco et al., "Diatom autofocusing
    in brightfield microscopy: a comparative study", ICPR 2000.
    """
    height, width = pixels.shape[:2]
    if height < 3 or width < 3:
        return FrameFigures(0.0, float(pixels.mean()) / 255, 0.0, 0.0)
    middles = np.linspace(1, height - 2, min(FRAME_ROWS, height - 2)).astype(np.intp)
    # Rows first, and whole: their bytes lie together. The green channel then is 1/3 of them.
    near = [pixels[middles + offset, :, 1] for offset in (-1, 0, 1)]
    above, here, below = (rows.astype(np.int16) for rows in near)
    edges = 4 * here[:, 1:-1] - here[:, :-2] - here[:, 2:] - above[:, 1:-1] - below[:, 1:-1]
    counts = np.bincount(near[1][:, ::2].ravel(), minlength=256)
    total = int(counts.sum())
    levels = np.arange(256)
    mean = float(counts @ levels) / total
    variance = float(counts @ (levels - mean) ** 2) / total
    edges_N = edges.astype(np.float32).ravel()
    # No `@` on so many: its library may give the sum to several threads, which then wait.
    squares = float(np.einsum("n,n->", edges_N, edges_N))
    sharpness = squares / len(edges_N) - float(edges_N.mean()) ** 2
    return FrameFigures(
        focus=math.log((max(sharpness, 0.0) + 1.0) / (variance + 1.0)),
        level=mean / 255,
        black=float(counts[: _BLACK + 1].sum()) / total,
        white=float(counts[_WHITE:].sum()) / total,
    )


def window_figures(values_CT: NDArray[np.float32]) -> WindowFigures:
    """Measure finite readings [C, T]."""
    low_C, high_C = values_CT.min(axis=1), values_CT.max(axis=1)
    level_C = values_CT.mean(axis=1, dtype=np.float64)
    apart_CT = values_CT - level_C[:, None].astype(np.float32)
    rms_C = np.sqrt(np.einsum("ct,ct->c", apart_CT, apart_CT, dtype=np.float64) / apart_CT.shape[1])
    peak_C = np.maximum(high_C - level_C, level_C - low_C)
    return WindowFigures(
        level=level_C,
        rms=np.log(rms_C + _QUIET),
        peak=np.log(peak_C + _QUIET),
        low=low_C,
        high=high_C,
    )


def middle_of(figures_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last axis of the middle eighty percent.

    A tenth on either side is left out, so that the defective parts of a line do not look like
    drift; and unlike a median it does not leap where a line makes two kinds of parts.
    """
    ordered = np.sort(figures_N, axis=-1)
    left_out = ordered.shape[-1] // 10
    kept: NDArray[np.float64] = ordered[..., left_out : ordered.shape[-1] - left_out]
    return np.asarray(kept.mean(axis=-1))


def spread_of(figures_N: NDArray[np.float64]) -> Spread:
    """Return middle and deviation of one figure over parts."""
    return Spread(float(middle_of(figures_N)), float(np.std(figures_N)))


def score_reference(scores_N: NDArray[np.float64]) -> ScoreReference | None:
    """Return the histogram of these scores, in bins of equal shares as far as ties let them.

    None for fewer than two bins' worth of scores.
    """
    bins = min(SCORE_BINS, len(scores_N) // SAMPLES_PER_BIN)
    if bins < 2:
        return None
    edges = np.unique(np.quantile(scores_N, np.arange(1, bins) / bins))
    counts = np.bincount(np.searchsorted(edges, scores_N, side="right"), minlength=len(edges) + 1)
    shares = counts / len(scores_N)
    return ScoreReference(tuple(map(float, edges)), tuple(map(float, shares)), len(scores_N))


def embedding_reference(embeddings_ND: NDArray[np.float32]) -> EmbeddingReference:
    """Return the mean embedding and the spread of the distances to it."""
    mean_D = embeddings_ND.mean(axis=0, dtype=np.float64)
    count = len(embeddings_ND)
    # From the mean of all others, as a new part is: its own share would draw the mean nearer.
    distances_N = np.linalg.norm(embeddings_ND - mean_D, axis=1) * (count / max(1, count - 1))
    return EmbeddingReference(tuple(map(float, mean_D)), spread_of(distances_N))


def channel_reference(
    name: str, windows_NT: list[NDArray[np.float32]], figures: list[WindowFigures], index: int
) -> ChannelReference:
    """Sum up one channel's windows; `figures` are theirs, `index` is the channel's place."""
    runs = [longest_run(window_T) / len(window_T) for window_T in windows_NT]
    rails = [max(rail_share(window_T)) for window_T in windows_NT]
    return ChannelReference(
        name=name,
        low=float(min(one.low[index] for one in figures)),
        high=float(max(one.high[index] for one in figures)),
        level=spread_of(np.array([one.level[index] for one in figures])),
        rms=spread_of(np.array([one.rms[index] for one in figures])),
        peak=spread_of(np.array([one.peak[index] for one in figures])),
        longest_run=float(np.quantile(runs, 0.9)),
        at_rail=float(np.quantile(rails, 0.9)),
    )
