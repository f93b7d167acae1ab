"""Where things lie in a picture: flipped, turned, stretched, shifted, tilted and gently warped.

All of it is one map from each pixel to the place where it comes from, so that picture and mask are
sampled once, at the same places. Beyond the edge both are mirrored: a defect that shows twice is
masked twice.

Shapes: H W image, C colours, G control points.
"""

from __future__ import annotations

import numpy as np
import torch
from kornia.geometry.transform import get_perspective_transform, remap
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from distill.recipe import AugmentRecipe

_CONTROL_POINTS = 7  # of the smooth warp, each way: four spans of a cubic B-spline
_LEVELS = 255.0

Map = tuple[NDArray[np.float32], NDArray[np.float32]]  # x and y of the source [H, W], in pixels


def placed(
    pixels_HWC: NDArray[np.uint8],
    mask_HW: NDArray[np.uint8] | None,
    recipe: AugmentRecipe,
    random: np.random.Generator,
) -> tuple[NDArray[np.uint8] | NDArray[np.float32], NDArray[np.uint8] | None]:
    """Return picture (0 to 255) and mask, moved alike; what the recipe leaves alone is the same."""
    turns, corners, warp, flips = random.spawn(4)
    flip_y, flip_x = flips.random(2) < 0.5
    step_y = -1 if recipe.flip_vertical and flip_y else 1
    step_x = -1 if recipe.flip_horizontal and flip_x else 1
    pixels_HWC = np.ascontiguousarray(pixels_HWC[::step_y, ::step_x])
    mask_HW = None if mask_HW is None else np.ascontiguousarray(mask_HW[::step_y, ::step_x])
    moves = recipe.rotate_degrees, recipe.scale, recipe.shift, recipe.perspective, recipe.elastic
    if not any(moves):
        return pixels_HWC, mask_HW
    height, width = pixels_HWC.shape[:2]
    lens_33 = _affine(height, width, recipe, turns) @ _tilt(height, width, recipe, corners)
    source = _add_warp(_plane(height, width, lens_33), recipe, warp)
    if mask_HW is None:
        return _sampled(pixels_HWC, source), None
    moved_HWC = _sampled(np.dstack([pixels_HWC, mask_HW]), source)
    soft_HW = np.clip(moved_HWC[:, :, -1] + np.float32(0.5), 0.0, _LEVELS).astype(np.uint8)
    return np.ascontiguousarray(moved_HWC[:, :, :-1]), soft_HW


def _sampled(layers_HWC: NDArray[np.uint8], source: Map) -> NDArray[np.float32]:
    """Read [H, W, C] between its pixels at the source's places, as float32 0 to 255."""
    image_1CHW = torch.from_numpy(layers_HWC.astype(np.float32)).permute(2, 0, 1)[None]
    x_1HW, y_1HW = (torch.from_numpy(values)[None] for values in source)
    moved = remap(image_1CHW, x_1HW, y_1HW, padding_mode="reflection", align_corners=True)
    return np.ascontiguousarray(moved[0].permute(1, 2, 0).numpy())


def _affine(
    height: int, width: int, recipe: AugmentRecipe, random: np.random.Generator
) -> NDArray[np.float64]:
    """Return the small turn, stretch and shift about the centre, as a matrix [3, 3] of pixels."""
    turn, stretch, shift_x, shift_y = random.uniform(-1.0, 1.0, 4)
    angle = np.deg2rad(turn * recipe.rotate_degrees)
    scale = 1.0 / (1.0 + stretch * recipe.scale)
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    x, y = (width - 1) / 2.0, (height - 1) / 2.0
    to_x, to_y = x + shift_x * recipe.shift * width, y + shift_y * recipe.shift * height
    return np.array(
        [
            [cosine, -sine, to_x - cosine * x + sine * y],
            [sine, cosine, to_y - sine * x - cosine * y],
            [0.0, 0.0, 1.0],
        ]
    )


def _tilt(
    height: int, width: int, recipe: AugmentRecipe, random: np.random.Generator
) -> NDArray[np.float64]:
    """Return the perspective that moves each corner by itself, as a matrix [3, 3] of pixels.

    Below a quarter of the size the four corners always stay a convex figure.
    """
    right, bottom = width - 1.0, height - 1.0
    corners_42 = np.array([[0.0, 0.0], [right, 0.0], [right, bottom], [0.0, bottom]])
    way_42 = random.uniform(-1.0, 1.0, (4, 2)) * recipe.perspective * [width, height]
    from_142, to_142 = torch.from_numpy(corners_42)[None], torch.from_numpy(corners_42 + way_42)
    matrix: NDArray[np.float64] = get_perspective_transform(from_142, to_142[None])[0].numpy()
    return matrix


def _plane(height: int, width: int, matrix_33: NDArray[np.float64]) -> Map:
    """Return where each pixel comes from under a matrix of homogeneous coordinates."""
    x_1W, y_H1 = np.arange(width)[None, :], np.arange(height)[:, None]
    x_HW, y_HW, w_HW = (
        (a * x_1W).astype(np.float32) + (b * y_H1 + c).astype(np.float32) for a, b, c in matrix_33
    )
    x_HW /= w_HW
    y_HW /= w_HW
    return x_HW, y_HW


def _add_warp(source: Map, recipe: AugmentRecipe, random: np.random.Generator) -> Map:
    """Add a smooth displacement: a cubic B-spline surface over random control points.

    It stays within its control points, and within the recipe's limit their differences over one
    span stay below the span, so that the picture never folds.
    """
    height, width = source[0].shape
    control_2GG = random.uniform(-1.0, 1.0, (2, _CONTROL_POINTS, _CONTROL_POINTS))
    if not recipe.elastic:
        return source
    control_2GG *= recipe.elastic * min(height, width)
    way_2HW = _spline(height) @ control_2GG.astype(np.float32) @ _spline(width).T
    return source[0] + way_2HW[0], source[1] + way_2HW[1]


def _spline(size: int) -> NDArray[np.float32]:
    """Return the weight [size, G] of each control point at each pixel (rows sum to 1)."""
    spans = _CONTROL_POINTS - 3
    knots = np.arange(-3.0, spans + 4.0)
    places = (np.arange(size) + 0.5) * spans / size
    return np.asarray(BSpline.design_matrix(places, knots, 3).toarray(), dtype=np.float32)
