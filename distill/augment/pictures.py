"""Mild changes to a picture that keep its label: where things lie, then how the camera sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.augment.exposure import blurred, compressed, noisy, shaded, toned
from distill.augment.placement import placed
from distill.recipe import AugmentRecipe


@dataclass(frozen=True)
class Picture:
    """An image and, where one is known, its defect mask."""

    pixels: NDArray[np.uint8]  # [H, W, 3]; the changes take any number of colours
    mask: NDArray[np.uint8] | None  # [H, W], 0 or 255 (soft edges between)


def varied_picture(picture: Picture, recipe: AugmentRecipe, random: np.random.Generator) -> Picture:
    """Move, warp, light and blur the picture a little; the mask moves along.

    Every change has random numbers of its own: switching one off leaves the others as they were.
    The order is that of the light's way: part, lamp, lens, sensor, cable.
    """
    place, light, lens, tone, noise, cable = random.spawn(6)
    pixels_HWC, mask_HW = placed(picture.pixels, picture.mask, recipe, place)
    seen_HWC = shaded(pixels_HWC, recipe, light)
    seen_HWC = blurred(seen_HWC, recipe, lens)
    seen_HWC = toned(seen_HWC, recipe, tone)
    seen_HWC = noisy(seen_HWC, recipe, noise)
    return Picture(compressed(as_bytes(seen_HWC), recipe, cable), mask_HW)


def as_bytes(pixels_HWC: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Round values of 0 to 255; bytes pass as they are."""
    if pixels_HWC.dtype == np.uint8:
        return np.asarray(pixels_HWC, dtype=np.uint8)
    rounded_HWC = np.asarray(pixels_HWC, dtype=np.float32) + np.float32(0.5)
    return np.asarray(np.clip(rounded_HWC, 0.0, 255.0, out=rounded_HWC), dtype=np.uint8)
