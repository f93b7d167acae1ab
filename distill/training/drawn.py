"""What each step of an epoch shows: which parts, in which round, and which of their modalities.

All of it follows from (seed, stage, epoch), so any process, worker or resumed run draws the same.

Shapes: B batch, N the parts that have a lesson.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.dataset import TrainingParts
from distill.recipe import LAST_STAGE, Recipe, Stage


class Drawn(NamedTuple):
    """What one step shows: parts, their rounds, and what is shown of each (image, sensor)."""

    parts_B: NDArray[np.int64]
    rounds_B: NDArray[np.int64]
    shown_B2: NDArray[np.float32]

    def some(self, these: slice) -> Drawn:
        """Return these of them."""
        return Drawn(self.parts_B[these], self.rounds_B[these], self.shown_B2[these])


@dataclass(frozen=True)
class Draw:
    """Draws what the steps of a stage show."""

    parts: TrainingParts
    taught_N: NDArray[np.int64]  # the parts that have a lesson
    rounds: int  # of copies
    recipe: Recipe
    stage: Stage

    @property
    def batch(self) -> int:
        """The recipe's, but no larger than the number of parts."""
        return min(self.recipe.train.batch, len(self.taught_N))

    @property
    def steps_per_epoch(self) -> int:
        """One pass over the parts, or the recipe's least number of steps where they are few."""
        passes = math.ceil(len(self.taught_N) / self.batch)
        return max(passes, self.recipe.train.min_steps_per_epoch)

    def epoch(self, epoch: int) -> list[Drawn]:
        """Draw every step: each part once, in a random order, and again where parts are few."""
        name = self.stage.name
        of_stage = [] if name == LAST_STAGE else [zlib.crc32(name.encode())]
        random = np.random.default_rng([self.recipe.seed, epoch, *of_stage])
        taught = len(self.taught_N)
        draws = max(taught, self.recipe.train.min_steps_per_epoch * self.batch)
        passes = [random.permutation(taught) for _ in range(math.ceil(draws / taught))]
        order = self.taught_N[np.concatenate(passes)[:draws]]
        steps = []
        for start in range(0, len(order), self.batch):
            chosen_B = order[start : start + self.batch]
            rounds_B = random.integers(0, self.rounds, len(chosen_B))
            shown_B2 = _shown(random, self.parts, chosen_B, self.recipe.train.withhold)
            steps.append(Drawn(chosen_B, rounds_B, shown_B2))
        return steps


def _shown(
    random: np.random.Generator, parts: TrainingParts, chosen_B: NDArray[np.int64], withhold: float
) -> NDArray[np.float32]:
    """Return which modalities are shown [B, 2]; never is all withheld."""
    shown_B2 = np.ones((len(chosen_B), 2), np.float32)
    if parts.spec.sensor is None:
        shown_B2[:, 1] = 0.0
        return shown_B2
    draw_B = random.random(len(chosen_B))
    shown_B2[draw_B < withhold, 1] = 0.0
    shown_B2[draw_B >= 1.0 - withhold, 0] = 0.0
    shown_B2[~parts.windows_N[chosen_B]] = (1.0, 0.0)  # a part without a window shows its image
    return shown_B2
