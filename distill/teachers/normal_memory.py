"""A memory of normal parts: how far is something from everything that was ever good?

The distance to the nearest remembered point, as in PatchCore (Roth et al., arXiv 2106.08265), with
a bounded, greedily chosen memory; and honest readings of its own training parts: each part is
measured against a memory that was built without it. Points pass by and only a bounded sample of
them is kept to choose from, so that thousands of parts need no more room than a few.

Shapes: P points, M remembered points, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


class Candidates:
    """A uniform sample, of bounded size, of all points that passed by.

    Each point draws a random key and the largest keys stay (reservoir sampling; Efraimidis and
    Spirakis, Information Processing Letters 97, 2006, with equal weights).
    """

    def __init__(self, most: int, seed: int, kept_as: torch.dtype = torch.float16) -> None:
        self._most = most
        self._kept_as = kept_as
        self._random = torch.Generator().manual_seed(seed)
        self._keys_P = torch.empty(0, dtype=torch.float64)
        self._points_PF = torch.empty(0, 0, dtype=kept_as)

    def see(self, points_PF: Tensor) -> None:
        """Let points [P, F] pass by."""
        keys_P = torch.rand(len(points_PF), generator=self._random, dtype=torch.float64)
        points_PF = points_PF.to(self._kept_as)
        if len(self._keys_P):
            keys_P = torch.cat([self._keys_P, keys_P])
            points_PF = torch.cat([self._points_PF, points_PF])
        self._keys_P, kept = keys_P.topk(min(self._most, len(keys_P)))
        self._points_PF = points_PF[kept]

    @property
    def size_bytes(self) -> int:
        """What the sample takes in memory."""
        return self._points_PF.nbytes + self._keys_P.nbytes

    @staticmethod
    def points_of(several: Iterable[Candidates]) -> Tensor:
        """Return a sample [P, F] of all that passed by, no larger than the largest of these."""
        present = [candidates for candidates in several if len(candidates._keys_P)]
        keys_P = torch.cat([candidates._keys_P for candidates in present])
        points_PF = torch.cat([candidates._points_PF for candidates in present])
        most = max(candidates._most for candidates in present)
        return points_PF[keys_P.topk(min(most, len(keys_P))).indices].float()


def memory_of(pool_PF: Tensor, size: int) -> NormalMemory:
    """Remember `size` points that cover those of the pool, which is in random order.

    Greedy farthest-point choice: each new point is the one farthest from all chosen so far
    (Sener and Savarese, arXiv 1708.00489; a 2-approximation of the k-centre problem).
    """
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

    def __init__(self, by_fold: Mapping[int, Candidates], *, size: int) -> None:
        """`by_fold` holds what passed by of the normal parts in each fold."""
        self._all = memory_of(Candidates.points_of(by_fold.values()), size)
        self._without: dict[int, NormalMemory] = {}
        for fold in sorted(by_fold):
            rest = [candidates for other, candidates in by_fold.items() if other != fold]
            if rest:
                self._without[fold] = memory_of(Candidates.points_of(rest), size)

    def distances(self, points_PF: Tensor, fold: int | None) -> Tensor:
        """Return distances [P]; `fold` is the fold of a part that the memory was built from."""
        memory = self._all if fold is None else self._without.get(fold, self._all)
        return memory.distances(points_PF.float())

    @property
    def points(self) -> int:
        """How many points the memory of all parts holds."""
        return len(self._all.points_MF)

    @property
    def size_bytes(self) -> int:
        """What all of its memories take."""
        return sum(memory.points_MF.nbytes for memory in (self._all, *self._without.values()))


def calibration_of(distances: Tensor, limit_quantile: float) -> Calibration:
    """Calibrate on distances of held-out normal points; the limit is their quantile."""
    values = distances.double().numpy()
    return Calibration(float(np.median(values)), float(np.quantile(values, limit_quantile)))
