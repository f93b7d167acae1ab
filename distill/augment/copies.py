"""Every training part in every round: the original, and copies that can be made again at any time.

Every copy depends on (seed, sample, copy) alone, so it is the same in any order and any process.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.augment.made_defects import SHAPES, broken_picture, with_defect_of
from distill.augment.made_faults import broken_window
from distill.augment.pictures import Picture, varied_picture
from distill.augment.windows import varied_window
from distill.dataset import TrainingParts
from distill.recipe import Recipe

BROKEN_IMAGE, BROKEN_SENSOR = 1, 2  # flags
_IMAGE, _SENSOR, _JITTER = 0, 1, 2  # streams of random numbers


@dataclass(frozen=True)
class Copies:
    """Every training part in every round, made again whenever it is asked for."""

    parts: TrainingParts
    recipe: Recipe
    painted: TrainingParts | None = None
    """The same parts at the image size at which made defects are painted; None: at their own."""

    def broken(self, index: int, round_number: int) -> int:
        """Return which modalities of this copy carry a made defect (flags).

        Only where no defect is labelled: real ones teach better than made ones. Of few parts, the
        normal ones get them all the same, or two or three defects would be learned by heart.
        """
        real = self.parts.has_defects
        if self.parts.few:
            real = bool(self.parts.normal_N[index] == 0.0)
        if round_number == 0 or real:
            return 0
        random = self._random(index, round_number, _JITTER)
        ways = self._ways_to_break(index)
        if random.random() >= self.recipe.targets.broken_share or not ways:
            return 0
        return int(random.choice(ways))

    def picture(self, index: int, round_number: int) -> Picture:
        """Return image and mask of one copy."""
        picture = Picture(self.parts.image(index), self.parts.mask(index))
        if round_number == 0:
            return picture
        made, varied = self._random(index, round_number, _IMAGE).spawn(2)
        if self.broken(index, round_number) & BROKEN_IMAGE:
            picture = self._broken_picture(index, picture, made)
        return varied_picture(picture, self.recipe.augment, varied)

    def window(
        self, index: int, round_number: int, epoch: int | None = None
    ) -> NDArray[np.float32] | None:
        """Return the window of one copy; with `epoch`, varied a little more for that epoch."""
        window = self.parts.window(index)
        if window is None:
            return None
        if self.broken(index, round_number) & BROKEN_SENSOR:
            random = self._random(index, round_number, _SENSOR)
            window = broken_window(window, self.recipe.augment, random)
        if epoch is not None:
            random = self._random(index, round_number, _JITTER + 1 + epoch)
            window = varied_window(window, self.recipe.augment, random)
        return window

    def _broken_picture(self, index: int, picture: Picture, random: np.random.Generator) -> Picture:
        """Paint a made defect, or lay the one over the picture that is painted at another size.

        Painted at both it would lie elsewhere: how much randomness shapes and fillings draw, and
        which attempt shows, depends on the pixels.
        """
        if self.painted is None:
            return broken_picture(picture, self.recipe.augment, random)
        before = Picture(self.painted.image(index), None)
        return with_defect_of(broken_picture(before, self.recipe.augment, random), picture)

    def _ways_to_break(self, index: int) -> list[int]:
        """Return what the part has and the recipe breaks, alone and together."""
        recipe = self.recipe.augment
        image = BROKEN_IMAGE if any(getattr(recipe, key) for key in SHAPES) else 0
        sensor = BROKEN_SENSOR if self.parts.windows_N[index] and recipe.sensor_fault else 0
        return sorted({image, sensor, image | sensor} - {0})

    def _random(self, index: int, *numbers: int) -> np.random.Generator:
        return generator_for(self.recipe.seed, self.parts.rows[index].sample_id, *numbers)


def generator_for(seed: int, sample_id: str, *numbers: int) -> np.random.Generator:
    """Return the random generator that belongs to one copy of one sample."""
    return np.random.default_rng([seed, zlib.crc32(sample_id.encode()), *numbers])
