"""Made defects: what breaks the picture of a normal part, with the mask that says where.

A shape (where) is filled (with what). Shapes: the patch and the scar of CutPaste (Li et al., arXiv
2104.04015, section 3), Perlin noise above a threshold as in DRAEM (Zavrtanik et al., arXiv
2108.07610, section 3.1), and a rough ellipse. Fillings come from the part itself or are made:
no texture set travels with the project.

Shapes: H W image, C colours, h w the box around the defect.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from distill.augment.perlin import perlin_noise
from distill.augment.pictures import Picture, as_bytes
from distill.recipe import AugmentRecipe

VISIBLE_LEVELS = 6  # of 255, in any colour: what changes by less is put back, and is no defect
_PLAIN_LEVELS = 12.0  # ... and this, averaged over 5 x 5 pixels, so that grain alone is no defect
_PLAIN_PIXELS = 4  # at least so many of those, or the attempt does not count
_ATTEMPTS = 6
_LEAST_AREA = 0.002  # of the image
_CUTPASTE_SIDE = 256.0  # CutPaste states a scar's pixels at this size of image
_JITTER = 0.1  # CutPaste's change of colour

Random = np.random.Generator
Soft = NDArray[np.float32]  # opacity in 0..1


def broken_picture(picture: Picture, recipe: AugmentRecipe, random: Random) -> Picture:
    """Paint one made defect into the picture.

    The mask is 255 exactly where a pixel differs from the picture's, by `VISIBLE_LEVELS` or more
    in some colour, and 0 elsewhere; a mask that the picture had is kept beside it. With all four
    shapes at 0 the picture comes back as it is.
    """
    odds = np.array([getattr(recipe, key) for key in SHAPES], dtype=np.float64)
    if not odds.any():
        return picture
    odds /= odds.sum()
    pixels_HWC = picture.pixels
    height, width = pixels_HWC.shape[:2]
    for number, attempt in enumerate(random.spawn(_ATTEMPTS)):
        key = tuple(SHAPES)[int(attempt.choice(len(odds), p=odds))]
        soft_HW = SHAPES[key](height, width, recipe.defect_area, attempt)
        # Where one piece of the part looks like another, it is filled with something else.
        cut = key in _CUT_AND_PASTED and number < _ATTEMPTS // 2
        fill = moved_piece if cut else _any_filling(attempt)
        painted_HWC, mask_HW = _painted(pixels_HWC, soft_HW, fill, attempt)
        if _is_plain(painted_HWC, pixels_HWC, mask_HW):
            break
    else:  # a picture on which nothing shows: push it towards the other end of its range
        soft_HW = patch(height, width, recipe.defect_area, random)
        painted_HWC, mask_HW = _painted(pixels_HWC, soft_HW, contrast, random)
    if picture.mask is not None:
        mask_HW = np.maximum(mask_HW, picture.mask)
    return Picture(painted_HWC, mask_HW)


def with_defect_of(broken: Picture, picture: Picture) -> Picture:
    """Lay the made defect of `broken` over a picture of the same part, of another size.

    Beside the defect the picture stays as sharp as it is. Colours are resized times their opacity
    (Porter and Duff, "Compositing Digital Images", 1984), so that none of what lies around the
    defect comes along with its edge. A mask that the picture had is kept beside the defect's.
    """
    assert broken.mask is not None
    size = picture.pixels.shape[1], picture.pixels.shape[0]
    alone_HWC = np.where(broken.mask[:, :, None] > 0, broken.pixels, np.uint8(0))
    over_HWC, mask_HW = (
        np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BILINEAR))
        for layer in (alone_HWC, broken.mask)
    )
    seen_HW1 = 1.0 - mask_HW[:, :, None] / np.float32(255.0)
    if picture.mask is not None:
        mask_HW = np.maximum(mask_HW, picture.mask)
    return Picture(as_bytes(picture.pixels * seen_HW1 + over_HWC), mask_HW)


def patch(height: int, width: int, most_area: float, random: Random) -> Soft:
    """Return the rectangle of CutPaste: aspect ratio 0.3 to 3.3, anywhere."""
    area = _area(most_area, random) * height * width
    aspect = np.exp(random.uniform(np.log(0.3), np.log(1.0 / 0.3)))
    high = int(np.clip(round(np.sqrt(area / aspect)), 2, height))
    wide = int(np.clip(round(np.sqrt(area * aspect)), 2, width))
    top = int(random.integers(height - high, endpoint=True))
    left = int(random.integers(width - wide, endpoint=True))
    soft_HW = np.zeros((height, width), np.float32)
    soft_HW[top : top + high, left : left + wide] = 1.0
    return soft_HW


def scar(height: int, width: int, most_area: float, random: Random) -> Soft:
    """Return the thin, turned rectangle of CutPaste: 2 to 16 by 10 to 25 pixels of 256."""
    grain = min(height, width) / _CUTPASTE_SIDE
    across = max(2.0, random.uniform(2.0, 16.0) * grain)
    along = max(5.0, random.uniform(10.0, 25.0) * grain)
    shrink = min(1.0, np.sqrt(most_area * height * width / (across * along)))
    along, across = along * shrink, across * shrink
    u_HW, v_HW = _turned(height, width, random)
    inside_HW = np.minimum(along / 2.0 - np.abs(u_HW), across / 2.0 - np.abs(v_HW))
    return np.asarray(np.clip(inside_HW + 0.5, 0.0, 1.0), dtype=np.float32)


def perlin(height: int, width: int, most_area: float, random: Random) -> Soft:
    """Return where Perlin noise is highest, over a drawn share of the image, edges a little soft.

    DRAEM's threshold is fixed; here it is the quantile that gives the share, so that the largest
    defect is the recipe's.
    """
    cells_y, cells_x = 2 ** random.integers(1, 5, 2, endpoint=True)
    noise_HW = perlin_noise(height, width, int(cells_y), int(cells_x), random)
    threshold = np.quantile(noise_HW, 1.0 - _area(most_area, random))
    return np.asarray(np.clip((noise_HW - threshold) / 0.05, 0.0, 1.0), dtype=np.float32)


def blob(height: int, width: int, most_area: float, random: Random) -> Soft:
    """Return a rough ellipse, from a dot to a scratch, with a soft edge."""
    area = _area(most_area, random) * height * width
    stretch = np.exp(random.uniform(-1.0, 1.0))
    ry, rx = np.sqrt(area / np.pi) * stretch, np.sqrt(area / np.pi) / stretch
    u_HW, v_HW = _turned(height, width, random)
    rough_HW = ndimage.gaussian_filter(
        random.standard_normal((height, width), dtype=np.float32), max(1.5, min(rx, ry) / 2.0)
    )
    rough_HW *= 0.25 / max(float(rough_HW.std()), 1e-6)
    distance_HW = np.sqrt((u_HW / rx) ** 2 + (v_HW / ry) ** 2) + rough_HW
    return np.asarray(np.clip((1.2 - distance_HW) / 0.2, 0.0, 1.0), dtype=np.float32)


SHAPES: dict[str, Callable[[int, int, float, Random], Soft]] = {
    "defect_patch": patch,
    "defect_scar": scar,
    "defect_perlin": perlin,
    "defect_blob": blob,
}
_CUT_AND_PASTED = ("defect_patch", "defect_scar")

Box = tuple[slice, slice]
Filling = Callable[[NDArray[np.uint8], Box, Random], NDArray[np.floating]]


def moved_piece(pixels_HWC: NDArray[np.uint8], box: Box, random: Random) -> NDArray[np.floating]:
    """Cut the box's content from elsewhere in the picture, mirrored, its colour a little off."""
    (height, width), (rows, columns) = pixels_HWC.shape[:2], box
    high, wide = rows.stop - rows.start, columns.stop - columns.start
    top = int(random.integers(height - high, endpoint=True))
    left = int(random.integers(width - wide, endpoint=True))
    piece_hwC = pixels_HWC[top : top + high, left : left + wide][::-1, ::-1]
    return piece_hwC * random.uniform(1.0 - _JITTER, 1.0 + _JITTER, pixels_HWC.shape[2])


def stain(pixels_HWC: NDArray[np.uint8], box: Box, random: Random) -> NDArray[np.floating]:
    """Dim what is there and lay a colour over it."""
    colour_C = random.uniform(0.0, 120.0, pixels_HWC.shape[2])
    return pixels_HWC[box] * random.uniform(0.2, 0.7) + colour_C


def rough_surface(pixels_HWC: NDArray[np.uint8], box: Box, random: Random) -> NDArray[np.floating]:
    """Return grain about one dark or bright colour."""
    size_hw = pixels_HWC[box].shape[:2]
    grain_hw = ndimage.gaussian_filter(random.normal(size=size_hw), random.uniform(0.5, 2.0))
    grain_hw *= random.uniform(20.0, 70.0) / max(float(grain_hw.std()), 1e-6)
    colour_C = random.uniform(0.0, 255.0, pixels_HWC.shape[2])
    return np.asarray(grain_hw[:, :, None] + colour_C)


def contrast(pixels_HWC: NDArray[np.uint8], box: Box, _random: Random) -> NDArray[np.floating]:
    """Return the end of the range that lies further away, for each value."""
    return np.where(pixels_HWC[box] < 128, 255.0, 0.0)


def _any_filling(random: Random) -> Filling:
    fillings: tuple[Filling, ...] = (moved_piece, stain, rough_surface)
    return fillings[int(random.integers(len(fillings)))]


def _painted(
    pixels_HWC: NDArray[np.uint8], soft_HW: Soft, fill: Filling, random: Random
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Mix the filling in; return the picture and where it now differs, 0 or 255."""
    mask_HW = np.zeros(soft_HW.shape, np.uint8)
    box = _box_of(soft_HW)
    if box is None:
        return pixels_HWC, mask_HW
    opacity_hw1 = soft_HW[box][:, :, None] * np.float32(random.uniform(0.5, 1.0))
    before_hwC = pixels_HWC[box]
    mixed_hwC = before_hwC * (1.0 - opacity_hw1) + fill(pixels_HWC, box, random) * opacity_hw1
    after_hwC = as_bytes(mixed_hwC)
    way_hwC = np.abs(after_hwC.astype(np.int16) - before_hwC)
    changed_hw = way_hwC.max(axis=2) >= VISIBLE_LEVELS
    painted_HWC = pixels_HWC.copy()
    painted_HWC[box][changed_hw] = after_hwC[changed_hw]
    mask_HW[box][changed_hw] = 255
    return painted_HWC, mask_HW


def _is_plain(
    painted_HWC: NDArray[np.uint8], pixels_HWC: NDArray[np.uint8], mask_HW: NDArray[np.uint8]
) -> bool:
    """Tell whether a person could see the defect, grain averaged away."""
    box = _box_of(mask_HW, margin=2)
    if box is None:
        return False
    way_hwC = painted_HWC[box].astype(np.float32) - pixels_HWC[box]
    smooth_hwC = ndimage.uniform_filter(way_hwC, (5, 5, 0))
    plain_hw = (np.abs(smooth_hwC).max(axis=2) >= _PLAIN_LEVELS) & (mask_HW[box] > 0)
    return int(np.count_nonzero(plain_hw)) >= _PLAIN_PIXELS


def _box_of(values_HW: NDArray[np.generic], margin: int = 0) -> Box | None:
    """Return the box around all that is not 0, None where everything is."""
    rows, columns = np.flatnonzero(values_HW.any(1)), np.flatnonzero(values_HW.any(0))
    if not len(rows):
        return None
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    return slice(top, rows[-1] + 1 + margin), slice(left, columns[-1] + 1 + margin)


def _area(most_area: float, random: Random) -> float:
    """Draw a defect's share of the image: as often from 0.2 to 0.4 % as from 3 to 6 %."""
    return float(np.exp(random.uniform(np.log(_LEAST_AREA), np.log(most_area))))


def _turned(height: int, width: int, random: Random) -> tuple[Soft, Soft]:
    """Return coordinates [H, W] about a drawn place, turned by a drawn angle, in pixels."""
    y_H1 = (np.arange(height) - random.uniform(0.0, height))[:, None]
    x_1W = (np.arange(width) - random.uniform(0.0, width))[None, :]
    angle = random.uniform(0.0, np.pi)
    u_HW = x_1W * np.cos(angle) + y_H1 * np.sin(angle)
    v_HW = y_H1 * np.cos(angle) - x_1W * np.sin(angle)
    return u_HW.astype(np.float32), v_HW.astype(np.float32)
