"""A memory of normal parts: how far is something from everything that was ever good?

The distance to the nearest remembered point, as in PatchCore (Roth et al., arXiv 2106.08265), with
a bounded, greedily chosen memory; and honest readings of its own training parts: each part is
measured against a memory that was built without it.

Shapes: P points, M remembered points, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_STEEPNESS = 4.0
_CHUNK_POINTS = 8192


@dataclass(frozen=True)
class NormalMemory:
    """Remembered points of normal parts."""

    points_MF: Tensor

    def distances(self, points_PF: Tensor) -> Tensor:
        """Return each point's Euclidean distance [P] to the nearest remembered one."""
        nearest = [
            torch.cdist(chunk, self.points_MF).amin(1)
            for chunk in torch.split(points_PF, _CHUNK_POINTS)
        ]
        return torch.cat(nearest)


@dataclass(frozen=True)
class Calibration:
    """Turns a distance into 0..1: 0.02 at the normal median, 0.5 at the normal limit."""

    middle: float
    limit: float

    def logits(self, distances: Tensor) -> Tensor:
        """Return the log odds that a distance is anomalous."""
        spread = max(self.limit - self.middle, 1e-6)
        return _STEEPNESS * (distances - self.limit) / spread


def memory_of(points_PF: Tensor, size: int, candidates: int, seed: int) -> NormalMemory:
    """Remember `size` points that cover `candidates` randomly drawn ones of `points_PF`.

    Greedy farthest-point choice: each new point is the one farthest from all chosen so far
    (Sener and Savarese, arXiv 1708.00489; a 2-approximation of the k-centre problem).
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(points_PF), generator=generator)[:candidates]
    pool_PF = points_PF[drawn].float()
    if len(pool_PF) <= size:
        return NormalMemory(pool_PF)
    squares_P = (pool_PF * pool_PF).sum(1)
    farness_P = torch.full((len(pool_PF),), torch.inf)
    chosen = [0]
    while len(chosen) < size:
        latest_F = pool_PF[chosen[-1]]
        distance_P = squares_P - 2.0 * (pool_PF @ latest_F) + squares_P[chosen[-1]]
        farness_P = torch.minimum(farness_P, distance_P)
        chosen.append(int(farness_P.argmax()))
    return NormalMemory(pool_PF[chosen])


class CrossFittedMemory:
    """One memory of all normal parts, and one per fold that was built without that fold."""

    def __init__(
        self,
        points: Sequence[Tensor],
        folds: Sequence[int],
        *,
        size: int,
        candidates: int,
        seed: int,
    ) -> None:
        """`points[i]` [P, F] belong to normal part i, which lies in fold `folds[i]`."""
        self._all = memory_of(torch.cat(list(points)), size, candidates, seed)
        self._without: dict[int, NormalMemory] = {}
        for fold in sorted(set(folds)):
            rest = [part for part, own in zip(points, folds, strict=True) if own != fold]
            if rest:
                self._without[fold] = memory_of(torch.cat(rest), size, candidates, seed)

    def distances(self, points_PF: Tensor, fold: int | None) -> Tensor:
        """Return distances [P]; `fold` is the fold of a part that the memory was built from."""
        memory = self._all if fold is None else self._without.get(fold, self._all)
        return memory.distances(points_PF.float())


def calibration_of(distances: Tensor, limit_quantile: float) -> Calibration:
    """Calibrate on distances of held-out normal points; the limit is their quantile."""
    values = distances.double().numpy()
    return Calibration(float(np.median(values)), float(np.quantile(values, limit_quantile)))
