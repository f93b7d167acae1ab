"""How a camera sees a picture: its light, blur, tones, noise and compression.

Each function takes [H, W, C] of 0 to 255, as bytes or as float32, and gives back the very same
where the recipe leaves the property alone.

Shapes: H W image, C colours, K kernel, L levels of a table.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.signal import convolve2d

from distill.recipe import AugmentRecipe

Seen = NDArray[np.uint8] | NDArray[np.float32]
_STEPS = 4  # entries of the tone table per level, so that nothing is rounded to bytes midway
_TOP = 255.0
_STRIP_ROWS = 32  # of a filter: so many rows stay in the cache
_STROKE_POINTS = 33  # of a smear, laid on the kernel's pixels


def shaded(pixels_HWC: Seen, recipe: AugmentRecipe, random: np.random.Generator) -> Seen:
    """Let the light fall off across the picture, and a soft-edged shadow lie on a side of it."""
    slope, fall, way, depth, where, edge = random.random(6)
    if not recipe.light_gradient and not recipe.shadow:
        return pixels_HWC
    height, width = pixels_HWC.shape[:2]
    along_HW = _ramp(height, width, 2.0 * np.pi * slope)
    light_HW = 1.0 + along_HW * np.float32(fall * recipe.light_gradient)
    if recipe.shadow:
        across_HW = _ramp(height, width, 2.0 * np.pi * way) - np.float32(where - 0.5)
        soft_HW = np.clip(across_HW / np.float32(0.05 + 0.4 * edge) + np.float32(0.5), 0.0, 1.0)
        light_HW *= 1.0 - soft_HW * np.float32(depth * recipe.shadow)
    return np.asarray(pixels_HWC * light_HW[:, :, None], dtype=np.float32)


def blurred(pixels_HWC: Seen, recipe: AugmentRecipe, random: np.random.Generator) -> Seen:
    """Put the picture out of focus (a disc) and smear it along a line, both below a pixel too."""
    focus, length, angle = random.random(3)
    side = min(pixels_HWC.shape[:2])
    kernel_KK = np.ones((1, 1))
    if recipe.defocus:
        kernel_KK = convolve2d(kernel_KK, disc(focus * recipe.defocus * side))
    if recipe.motion_blur:
        kernel_KK = convolve2d(kernel_KK, smear(length * recipe.motion_blur * side, np.pi * angle))
    if kernel_KK.shape == (1, 1):
        return pixels_HWC
    return filtered(pixels_HWC, kernel_KK.astype(np.float32))


def toned(pixels_HWC: Seen, recipe: AugmentRecipe, random: np.random.Generator) -> Seen:
    """Change gamma, contrast about each colour's mean, brightness, and each colour's gain.

    All four are functions of one value, so that they are one table for each colour.
    """
    gamma, contrast, brightness = random.uniform(-1.0, 1.0, 3)
    colour_C = random.uniform(-1.0, 1.0, (pixels_HWC.shape[2],))
    if not (recipe.gamma or recipe.contrast or recipe.brightness or recipe.colour):
        return pixels_HWC
    steps = 1 if pixels_HWC.dtype == np.uint8 else _STEPS
    entries = int(_TOP) * steps + 1
    exact_HWC = pixels_HWC * np.float32(steps)
    exact_HWC += np.float32(0.5)
    places_HWC = np.clip(exact_HWC, 0.0, entries - 1.0, out=exact_HWC).astype(np.uint16)
    level_L = np.linspace(0.0, 1.0, entries) ** np.exp(gamma * recipe.gamma)
    toned_HWC = np.empty(pixels_HWC.shape, np.float32)
    gain_C = 1.0 + colour_C * recipe.colour
    for number, gain in enumerate(gain_C.tolist()):
        places_HW = places_HWC[:, :, number]
        counts_L = np.bincount(places_HW.ravel(), minlength=entries)
        mean = counts_L @ level_L / places_HW.size
        curve_L = mean + (level_L - mean) * (1.0 + contrast * recipe.contrast)
        curve_L = (curve_L + brightness * recipe.brightness) * gain * _TOP
        toned_HWC[:, :, number] = curve_L.astype(np.float32)[places_HW]
    return toned_HWC


def noisy(pixels_HWC: Seen, recipe: AugmentRecipe, random: np.random.Generator) -> Seen:
    """Add noise to each value by itself, as a short exposure does."""
    if not recipe.pixel_noise:
        return pixels_HWC
    deviation = np.float32(random.random() * recipe.pixel_noise * _TOP)
    noise_HWC = random.standard_normal(pixels_HWC.shape, dtype=np.float32)
    noise_HWC *= deviation
    noise_HWC += pixels_HWC
    return noise_HWC


def compressed(
    pixels_HWC: NDArray[np.uint8], recipe: AugmentRecipe, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Send the picture through JPEG, as many network cameras do. Takes 1 or 3 colours."""
    if not recipe.jpeg_loss:
        return pixels_HWC
    quality = round(100.0 - random.random() * recipe.jpeg_loss)
    file = io.BytesIO()
    flat = pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC
    Image.fromarray(np.ascontiguousarray(flat)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), dtype=np.uint8).reshape(pixels_HWC.shape)


def disc(radius: float) -> NDArray[np.float64]:
    """Return the kernel [K, K] of a point out of focus; below half a pixel it is the point."""
    reach = max(0, int(np.ceil(radius - 0.5)))
    offset_K = np.arange(-reach, reach + 1)
    distance_KK = np.hypot(offset_K[:, None], offset_K[None, :])
    kernel_KK = np.clip(radius + 0.5 - distance_KK, 0.0, 1.0)
    return kernel_KK / kernel_KK.sum() if radius > 0.0 else np.ones((1, 1))


def smear(length: float, angle: float) -> NDArray[np.float64]:
    """Return the kernel [K, K] of a point that moves `length` pixels while the shutter is open."""
    along = np.linspace(-0.5, 0.5, _STROKE_POINTS) * length
    x, y = along * np.cos(angle), along * np.sin(angle)
    reach_x, reach_y = int(np.ceil(abs(x[0]))), int(np.ceil(abs(y[0])))
    kernel_KK = np.zeros((2 * reach_y + 1, 2 * reach_x + 1))  # no larger than it must be
    x, y = x + reach_x, y + reach_y
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for down in (0, 1):  # each point is shared among the four pixels around it
        for right in (0, 1):
            share = np.abs(1 - right - (x - left)) * np.abs(1 - down - (y - top))
            inside = share > 0.0
            np.add.at(kernel_KK, ((top + down)[inside], (left + right)[inside]), share[inside])
    return np.asarray(kernel_KK / kernel_KK.sum())


def filtered(pixels_HWC: Seen, kernel_KK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Filter by a small kernel that is mostly 0, the picture mirrored at its edges.

    Tap by tap, over strips that stay in the processor's cache. Torch's convolution, which kornia's
    filters call, takes longer: it computes with the zeros too.
    """
    height, width = pixels_HWC.shape[:2]
    reach_y, reach_x = (size // 2 for size in kernel_KK.shape)
    room = (reach_y, reach_y), (reach_x, reach_x), (0, 0)
    wide_HWC = np.pad(pixels_HWC.astype(np.float32, copy=False), room, mode="reflect")
    seen_HWC = np.zeros(pixels_HWC.shape, np.float32)
    taps = [(y, x, kernel_KK[y, x]) for y, x in np.argwhere(kernel_KK).tolist()]
    for top in range(0, height, _STRIP_ROWS):
        strip_HWC = seen_HWC[top : top + _STRIP_ROWS]
        product_HWC = np.empty_like(strip_HWC)
        for y, x, weight in taps:
            rows = slice(top + y, top + y + len(strip_HWC))
            strip_HWC += np.multiply(wide_HWC[rows, x : x + width], weight, out=product_HWC)
    return seen_HWC


def _ramp(height: int, width: int, angle: float) -> NDArray[np.float32]:
    """Return [H, W] that rises from -1 to 1 across the picture in a direction."""
    x_1W = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :] * np.float32(np.cos(angle))
    y_H1 = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    return np.asarray((x_1W + y_H1) / np.float32(abs(np.cos(angle)) + abs(np.sin(angle))))
