"""Which parts each training step sees, in which copy and with which modalities.

Everything follows from (seed, epoch), so a run that was stopped and resumed sees what the unbroken
run would have seen.

Shapes: B batch, C T sensor, G cells, S stem features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.recipe import Recipe
from distill.targets import Copies, Targets
from distill.training.losses import Lesson

_ALL, _IMAGE_ALONE, _SENSOR_ALONE = range(3)


@dataclass(frozen=True)
class Batch:
    """One training step's input and what it should be read as."""

    stem_BGS: Tensor
    sensor_BCT: Tensor | None
    lesson: Lesson


@dataclass(frozen=True)
class Batches:
    """The training parts, epoch by epoch."""

    copies: Copies
    targets: Targets

    @property
    def steps_per_epoch(self) -> int:
        """One pass over the parts, or the recipe's least number of steps where they are few."""
        train = self._recipe.train
        return max(math.ceil(len(self.copies.parts) / self._batch_size), train.min_steps_per_epoch)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        random = np.random.default_rng([self._recipe.seed, number])
        size, parts = self._batch_size, len(self.copies.parts)
        draws = max(parts, self._recipe.train.min_steps_per_epoch * size)
        passes = [random.permutation(parts) for _ in range(math.ceil(draws / parts))]
        order = np.concatenate(passes)[:draws]
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            rounds = random.integers(0, self.targets.rounds, len(chosen))
            yield self._batch(chosen, rounds, self._withheld(random, len(chosen)), number)

    @property
    def _batch_size(self) -> int:
        """The recipe's, but no larger than the training set."""
        return min(self._recipe.train.batch, len(self.copies.parts))

    @property
    def _recipe(self) -> Recipe:
        return self.copies.recipe

    def _withheld(self, random: np.random.Generator, size: int) -> NDArray[np.float32]:
        """Return which modalities are shown [B, 2]; never is all withheld."""
        shown_B2 = np.ones((size, 2), np.float32)
        if self.copies.parts.spec.sensor is not None:
            draw_B = random.random(size)
            withhold = self._recipe.train.withhold
            shown_B2[draw_B < withhold, 1] = 0.0
            shown_B2[draw_B >= 1.0 - withhold, 0] = 0.0
        return shown_B2

    def _batch(
        self,
        chosen: NDArray[np.int64],
        rounds: NDArray[np.int64],
        shown_B2: NDArray[np.float32],
        epoch: int,
    ) -> Batch:
        sensor_BCT = None
        if self.copies.parts.spec.sensor is not None:
            sensor_BCT = self._windows(chosen, rounds, shown_B2, epoch)
        else:
            shown_B2[:, 1] = 0.0
        return Batch(
            stem_BGS=_float(self.targets.stem[rounds, chosen]),
            sensor_BCT=sensor_BCT,
            lesson=self._lesson(chosen, rounds, shown_B2),
        )

    def _windows(
        self,
        chosen: NDArray[np.int64],
        rounds: NDArray[np.int64],
        shown_B2: NDArray[np.float32],
        epoch: int,
    ) -> Tensor:
        """Return the windows [B, C, T]. A part without one shows its image instead."""
        sensor = self.copies.parts.spec.sensor
        assert sensor is not None
        windows = np.zeros((len(chosen), len(sensor.channels), sensor.samples), np.float32)
        for place, (index, number) in enumerate(zip(chosen, rounds, strict=True)):
            window = self.copies.window(int(index), int(number), epoch)
            if window is None:
                shown_B2[place] = (1.0, 0.0)
            elif shown_B2[place, 1]:
                windows[place] = window
        return torch.from_numpy(windows)

    def _lesson(
        self,
        chosen: NDArray[np.int64],
        rounds: NDArray[np.int64],
        shown_B2: NDArray[np.float32],
    ) -> Lesson:
        """With labelled defects the labels lead; else the teacher's word on what is shown.

        A label is of the whole part: its defect may not show in the one modality that is left.
        Insisting on it would teach the student to remember parts, so where something is withheld
        the teacher says instead what can be known from the rest.
        """
        parts = self.copies.parts
        grid = (parts.spec.map_height, parts.spec.map_width)
        labels_BK = np.eye(len(parts.spec.classes), dtype=np.float32)[parts.labels_N[chosen]]
        if parts.has_defects:
            view_B = _view_of(shown_B2) if parts.spec.sensor else np.zeros(len(chosen), np.int64)
            share = self._recipe.targets.teacher_share
            share_B1 = np.where(view_B == _ALL, share, 1.0).astype(np.float32)[:, None]
            soft_BK = self.targets.soft_labels[view_B, chosen]
            classes_BK = (1.0 - share_B1) * labels_BK + share_B1 * soft_BK
            score_B = 1.0 - classes_BK[:, 0]
        else:
            classes_BK = labels_BK
            normal_B2 = 1.0 - shown_B2 * self.targets.scores[rounds, chosen]
            score_B = 1.0 - normal_B2[:, 0] * normal_B2[:, 1]
        return Lesson(
            class_probabilities_BK=_float(classes_BK),
            score_B=_float(np.clip(score_B, 0.0, 1.0)),
            map_Bhw=_float(self.targets.map[rounds, chosen]).reshape(-1, *grid),
            features_BGF=_float(self.targets.features[rounds, chosen]),
            present_B2=torch.from_numpy(shown_B2),
        )


def _view_of(shown_B2: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return which of the teacher's views [B] fits what is shown (see `targets`)."""
    image_B, sensor_B = shown_B2[:, 0] > 0, shown_B2[:, 1] > 0
    return np.where(image_B & sensor_B, _ALL, np.where(image_B, _IMAGE_ALONE, _SENSOR_ALONE))


def _float(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
