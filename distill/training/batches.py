"""What each training step learns from: the copies of its parts, and what they should be read as.

Everything follows from (seed, stage, epoch, step), so any process, worker or resumed run makes the
same batch, and a piece of it without the rest.

Shapes: B batch, b piece of it, C T sensor, G cells, S stem features, K classes, N parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.augment.copies import Copies
from distill.recipe import Recipe, Stage
from distill.targets.opened import Targets
from distill.training.drawn import Draw, Drawn
from distill.training.lessons import Lessons, rows_of
from distill.training.losses import Lesson
from edge.errors import InputError


@dataclass(frozen=True)
class Batch:
    """One training step's input and what it should be read as, or a piece of it."""

    samples: tuple[str, ...]  # whose they are
    stem_BGS: Tensor
    sensor_BCT: Tensor | None
    lesson: Lesson


class TaughtBy(Protocol):
    """Who says what a batch should be read as."""

    def of(self, drawn: Drawn, mine: slice, factor: float) -> Lesson:
        """Return the lesson of the parts `mine` of a batch, the weights times `factor`."""
        ...

    def parts_with_one(self) -> NDArray[np.int64]:
        """Return the parts that have a lesson."""
        ...


@dataclass
class Batches:
    """The training parts of a stage, epoch by epoch. Raises InputError where none has a lesson."""

    copies: Copies
    targets: Targets
    recipe: Recipe
    stage: Stage
    _plan: tuple[int, list[Drawn]] = field(default=(-1, []), repr=False)  # of the latest epoch

    def __post_init__(self) -> None:
        if self.targets.readings is not None:
            parts = replace(self.copies.parts, readings=self.targets.readings)
            self.copies = replace(self.copies, parts=parts)
        if not len(self.taught_N):
            raise InputError(
                where=f"stage '{self.stage.name}'",
                expected="at least one part that its losses can teach from",
                found=f"none of {len(self.copies.parts)}",
                do="Label some parts, or give another loss a weight.",
            )

    def __reduce__(self) -> tuple[Callable[..., Batches], tuple[Any, ...]]:
        """Cross to a worker without what is mapped (see `Targets`)."""
        parts = replace(self.copies.parts, readings=None)
        copies = replace(self.copies, parts=parts)
        return type(self), (copies, self.targets, self.recipe, self.stage)

    @cached_property
    def taught_N(self) -> NDArray[np.int64]:  # noqa: N802 (shape suffix)
        """The parts that have a lesson under the stage's losses; others are not drawn."""
        return self._lessons.parts_with_one()

    @property
    def steps_per_epoch(self) -> int:
        """How many training steps show every part once, or more of them where parts are few."""
        return self._draw.steps_per_epoch

    def piece(self, epoch: int, step: int, piece: int, pieces: int) -> Batch:
        """Return piece `piece` of `pieces` of one step's batch.

        The mean of the losses over all pieces is that of the whole batch: a lesson's weights are
        shares of the whole batch, times `pieces`. Where a batch has fewer parts than pieces, a
        piece without a part shows one whose lessons weigh nothing.
        """
        drawn = self.drawn(epoch, step)
        size = len(drawn.parts_B)
        begins, ends = size * piece // pieces, size * (piece + 1) // pieces
        mine = slice(begins, max(ends, begins + 1))
        factor = float(pieces) if ends > begins else 0.0
        parts_b, rounds_b, shown_b2 = drawn.some(mine)
        return Batch(
            samples=tuple(self.copies.parts.rows[part].sample_id for part in parts_b),
            stem_BGS=rows_of(self.targets.stem, rounds_b, parts_b),
            sensor_BCT=self._windows(parts_b, rounds_b, shown_b2, epoch),
            lesson=self._lessons.of(drawn, mine, factor),
        )

    def drawn(self, epoch: int, step: int) -> Drawn:
        """Return what one step shows, without reading any of it."""
        if self._plan[0] != epoch:
            self._plan = (epoch, self._draw.epoch(epoch))
        return self._plan[1][step]

    def _windows(
        self,
        parts_b: NDArray[np.int64],
        rounds_b: NDArray[np.int64],
        shown_b2: NDArray[np.float32],
        epoch: int,
    ) -> Tensor | None:
        """Return the windows [b, C, T], zeros where they are withheld."""
        sensor = self.copies.parts.spec.sensor
        if sensor is None:
            return None
        windows = np.zeros((len(parts_b), len(sensor.channels), sensor.samples), np.float32)
        for place in np.flatnonzero(shown_b2[:, 1]):
            part, number = int(parts_b[place]), int(rounds_b[place])
            windows[place] = self.copies.window(part, number, epoch)
        return torch.from_numpy(windows)

    @cached_property
    def _draw(self) -> Draw:
        parts, rounds = self.copies.parts, self.targets.rounds
        return Draw(parts, self.taught_N, rounds, self.recipe, self.stage)

    @cached_property
    def _lessons(self) -> TaughtBy:
        return Lessons(self.copies, self.targets, self.recipe, self.stage)
