"""How large are the values that enter a layer, and how much of that should int8 cover?

A histogram of magnitudes answers four ways. Its memory is fixed: where a value lies beyond its
width, the width doubles and the counts of each pair of neighbours are added. Widths are powers of
two, so that no bin is ever cut in two and the order of the samples changes nothing.

`max` covers everything that was seen. `percentile` and `entropy` after Wu et al., "Integer
Quantization for Deep Learning Inference", arXiv 2004.09602 (entropy is Migacz's, "8-bit Inference
with TensorRT", GTC 2017); `mse` after Choukroun et al., arXiv 1902.06822.

Shapes: N bins, L levels of magnitude, C candidates.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.quantization import int8

Method = Literal["max", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("max", "percentile", "entropy", "mse")

BINS = 2048
LEVELS = int8.LEVELS
PERCENTILE = 0.9999
_FIRST_BIN = 128  # entropy: fewer bins than levels say nothing
_STRIDE = 8  # bins between two candidates of entropy
_CANDIDATES = 128  # of mse
_LEAST_SHARE = 1 / 16  # mse looks no lower than this share of the largest; bins are 16 a step
_NOTHING = 1e-12
_NARROWEST = 2.0**-100  # widths below it have a reciprocal beyond float32


class Histogram:
    """Counts of |value| in `BINS` equal bins from 0 to `width`, and the largest exactly."""

    def __init__(self) -> None:
        self.counts_N: NDArray[np.int64] = np.zeros(BINS, dtype=np.int64)
        self.width = 0.0  # 0 until the first value above 0
        self.largest = 0.0  # infinite or NaN once such a value was seen

    def add(self, values: Tensor) -> None:
        """Count every value of a tensor of any shape."""
        magnitudes = values.detach().abs().flatten()
        largest = float(magnitudes.max())
        if np.isfinite(self.largest) and not largest <= self.largest:
            self.largest = largest
        if not np.isfinite(self.largest):
            return
        if self.width == 0.0:
            if largest == 0.0:
                self.counts_N[0] += magnitudes.numel()
                return
            self.width = max(2.0 ** math.ceil(math.log2(largest)), _NARROWEST)
        while self.width < largest:
            self.counts_N = np.concatenate(
                [self.counts_N.reshape(-1, 2).sum(1), np.zeros(BINS // 2, dtype=np.int64)]
            )
            self.width *= 2.0
        if magnitudes.dtype == torch.bfloat16:
            magnitudes = _spread(magnitudes)
        # The scale is a power of two, so bins are exact in any float. Twice as fast as `histc`.
        bins = (magnitudes * (BINS / self.width)).int().clamp_(max=BINS - 1)
        self.counts_N += torch.bincount(bins, minlength=BINS).numpy()

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts_N.sum())

    def middles(self) -> NDArray[np.float64]:
        """Return the middle of every bin [N]."""
        return (np.arange(BINS, dtype=np.float64) + 0.5) * (self.width / BINS)


def _spread(magnitudes: Tensor) -> Tensor:
    """Spread each bfloat16 evenly over the float32 values that are rounded to it.

    It has 128 values in each power of two, so that most bins would stay empty, which `entropy`
    takes for information.
    """
    bits = magnitudes.float().view(torch.int32) + _offsets(magnitudes.numel())
    return bits.clamp_(min=0).view(torch.float32)


@lru_cache(maxsize=8)  # layers have a few sizes
def _offsets(count: int) -> Tensor:
    """Return `count` numbers in [-2^15, 2^15), evenly spread (Knuth's 40503), always the same."""
    return (torch.arange(count) * 40503 & 0xFFFF).int() - 0x8000


def range_of(histogram: Histogram, method: Method) -> float:
    """Return the magnitude that becomes 127; what lies above it is clipped. 0 where all was 0."""
    if histogram.largest == 0.0 or method == "max":
        return histogram.largest
    found = {"percentile": _percentile, "entropy": _entropy, "mse": _mse}[method](histogram)
    return min(found, histogram.largest)


def _percentile(histogram: Histogram) -> float:
    """Return the upper edge of the bin below which `PERCENTILE` of the values lie."""
    reached_N = np.cumsum(histogram.counts_N) / histogram.total
    last = int(np.searchsorted(reached_N, PERCENTILE))
    return (last + 1) * histogram.width / BINS


def _entropy(histogram: Histogram) -> float:
    """Return the range whose int8 distribution tells most of the seen one (least divergence)."""
    counts_N = histogram.counts_N.astype(np.float64)
    counts_N[0] = counts_N[1]  # exact zeros, which int8 keeps as they are, would outweigh the rest
    used = int(np.flatnonzero(histogram.counts_N)[-1]) + 1
    stops = [*range(_FIRST_BIN, used, _STRIDE), used]
    divergences = [_divergence(counts_N, stop) for stop in stops]
    return float(stops[int(np.argmin(divergences))] * histogram.width / BINS)


def _divergence(counts_N: NDArray[np.float64], stop: int) -> float:
    """Return KL(P || Q): P is what was seen, clipped at bin `stop`, Q the same in int8's levels."""
    kept = counts_N[:stop]
    seen = kept.copy()
    seen[-1] += counts_N[stop:].sum()
    there = seen > 0
    levels = min(stop, LEVELS + 1)
    level = np.arange(stop) * levels // stop
    sums_L = np.bincount(level, kept, levels)
    filled_L = np.bincount(level, there, levels)
    spread = np.where(there, (sums_L / np.maximum(filled_L, 1))[level], 0.0)
    if spread.sum() == 0:
        return np.inf
    p, q = seen[there] / seen.sum(), spread[there] / spread.sum()
    return float(np.sum(p * np.log(p / np.maximum(q, _NOTHING))))


def _mse(histogram: Histogram) -> float:
    """Return the range with the least squared error: of rounding below it, of clipping above."""
    filled = histogram.counts_N > 0
    middles_N, counts_N = histogram.middles()[filled], histogram.counts_N[filled]
    ranges_C = histogram.largest * np.geomspace(_LEAST_SHARE, 1.0, _CANDIDATES)
    errors = [_squared_error(middles_N, counts_N, covered) for covered in ranges_C]
    return float(ranges_C[int(np.argmin(errors))])


def _squared_error(
    middles_N: NDArray[np.float64], counts_N: NDArray[np.int64], covered: float
) -> float:
    step = covered / LEVELS
    kept_N = np.minimum(np.round(middles_N / step), LEVELS) * step
    return float(counts_N @ (middles_N - kept_N) ** 2)
