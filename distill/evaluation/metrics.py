"""Measures of a scorer, as pure functions.

Shapes: N samples, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

_BINS = 8192
_LOGIT_LIMIT = 16.0
_FALSE_POSITIVE_LIMIT = 0.3


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A share of `n`, with its 95 % confidence interval; None where n is 0."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def auroc(scores_N: NDArray[np.floating], anomalous_N: NDArray[np.bool_]) -> float | None:
    """Return the area under the ROC curve; None where only one kind is present.

    The probability that an anomalous sample scores above a normal one, ties counted half: the
    Mann-Whitney statistic U / (n1 * n0) (Hanley and McNeil, Radiology 143, 1982).
    """
    anomalous = int(anomalous_N.sum())
    normal = len(anomalous_N) - anomalous
    if not anomalous or not normal:
        return None
    ranks = stats.rankdata(scores_N)
    u = ranks[anomalous_N].sum() - anomalous * (anomalous + 1) / 2.0
    return float(u / (anomalous * normal))


def clopper_pearson(hits: int, n: int, confidence: float = 0.95) -> Rate:
    """Return hits / n with its exact binomial interval (Clopper and Pearson, Biometrika 26, 1934).

    low = Beta(alpha / 2; k, n - k + 1), high = Beta(1 - alpha / 2; k + 1, n - k), as quantiles.
    """
    if n == 0:
        return Rate(None, None, None, 0)
    interval = stats.binomtest(hits, n).proportion_ci(confidence, method="exact")
    return Rate(hits / n, float(interval.low), float(interval.high), n)


def aupro(
    pairs: Iterable[tuple[NDArray[np.float32], NDArray[np.bool_]]],
) -> float | None:
    """Return the area under the per-region-overlap curve up to 30 % false positives, over 0.3.

    `pairs` are anomaly maps [H, W] in 0..1 with their masks [H, W]; an empty mask is a normal
    image. Each connected region counts the same, however small (Bergmann et al., "The MVTec
    Anomaly Detection Dataset", IJCV 2021, section 5.2). Thresholds are 8,192 steps of the map's
    log odds, so that memory does not grow with the images. None where there is no region, or
    no normal pixel.
    """
    normal_counts = np.zeros(_BINS)
    overlap = np.zeros(_BINS)  # summed over regions: share of the region in each bin
    regions = 0
    for map_HW, mask_HW in pairs:
        bins_HW = _bins_of(map_HW)
        normal_counts += np.bincount(bins_HW[~mask_HW], minlength=_BINS)
        labels_HW, found = ndimage.label(mask_HW, structure=np.ones((3, 3)))
        for region in range(1, found + 1):
            counts = np.bincount(bins_HW[labels_HW == region], minlength=_BINS)
            overlap += counts / counts.sum()
        regions += found
    if regions == 0 or normal_counts.sum() == 0:
        return None
    # From the highest threshold down: what lies at or above each step.
    false_positives = np.cumsum(normal_counts[::-1]) / normal_counts.sum()
    overlaps = np.cumsum(overlap[::-1]) / regions
    return _area_up_to(np.concatenate([[0.0], false_positives]), np.concatenate([[0.0], overlaps]))


def _area_up_to(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Integrate the curve by trapezia up to the false-positive limit, as a share of the limit."""
    limit = _FALSE_POSITIVE_LIMIT
    kept = int(np.searchsorted(x, limit, side="right"))
    xs, ys = x[:kept], y[:kept]
    if xs[-1] < limit:
        share = (limit - xs[-1]) / (x[kept] - xs[-1])
        xs = np.append(xs, limit)
        ys = np.append(ys, ys[-1] + share * (y[kept] - ys[-1]))
    return float(np.sum(np.diff(xs) * (ys[1:] + ys[:-1]) / 2.0) / limit)


def _bins_of(map_HW: NDArray[np.float32]) -> NDArray[np.int64]:
    """Sort map values into bins of their log odds: many lie near to 0, where steps must be fine."""
    probability = np.clip(map_HW.astype(np.float64), 1e-12, 1.0 - 1e-12)
    logits = np.clip(np.log(probability / (1.0 - probability)), -_LOGIT_LIMIT, _LOGIT_LIMIT)
    return np.asarray((logits + _LOGIT_LIMIT) / (2.0 * _LOGIT_LIMIT) * (_BINS - 1), dtype=np.int64)
