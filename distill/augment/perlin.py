"""Perlin noise: smooth, without direction, of one size of grain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def perlin_noise(
    height: int, width: int, cells_y: int, cells_x: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Return gradient noise [H, W], within -0.71 and 0.71, over a lattice of cells.

    Each corner of a cell has a gradient of length 1; a point's value is the blend of what the four
    gradients around it say (Perlin, "An image synthesizer", 1985), by the smoother fade
    6 t^5 - 15 t^4 + 10 t^3 (Perlin, "Improving noise", 2002).

    Shapes: Y X corners of the lattice.
    """
    angle_YX = random.uniform(0.0, 2.0 * np.pi, (cells_y + 1, cells_x + 1)).astype(np.float32)
    gradient_y_YX, gradient_x_YX = np.sin(angle_YX), np.cos(angle_YX)
    place_H, place_W = _places(height, cells_y), _places(width, cells_x)
    row_H, column_W = place_H.astype(np.intp), place_W.astype(np.intp)
    y_H1 = (place_H - row_H).astype(np.float32)[:, None]
    x_1W = (place_W - column_W).astype(np.float32)[None, :]

    def said_by(down: int, right: int) -> NDArray[np.float32]:
        corner = np.ix_(row_H + down, column_W + right)
        said_HW = gradient_y_YX[corner] * (y_H1 - down) + gradient_x_YX[corner] * (x_1W - right)
        return np.asarray(said_HW)

    fade_x_1W, fade_y_H1 = _fade(x_1W), _fade(y_H1)
    upper_HW = said_by(0, 0) * (1.0 - fade_x_1W) + said_by(0, 1) * fade_x_1W
    lower_HW = said_by(1, 0) * (1.0 - fade_x_1W) + said_by(1, 1) * fade_x_1W
    return np.asarray(upper_HW * (1.0 - fade_y_H1) + lower_HW * fade_y_H1)


def _places(size: int, cells: int) -> NDArray[np.float32]:
    """Return where each pixel's middle lies among the cells."""
    return ((np.arange(size) + 0.5) * cells / size).astype(np.float32)


def _fade(t: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(t * t * t * (t * (t * 6.0 - 15.0) + 10.0), dtype=np.float32)
