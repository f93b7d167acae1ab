"""Copies of a training part: mild changes that keep its label, and made defects that break it.

Every copy depends on (seed, sample, copy) alone, so it can be made again at any time, in any
order, by any process. Made defects follow CutPaste (Li et al., arXiv 2104.04015) and the smooth
noise masks of DRAEM (Zavrtanik et al., arXiv 2108.07610).

Shapes: H W image, C channels, T readings.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from distill.recipe import AugmentRecipe

BROKEN_IMAGE, BROKEN_SENSOR = 1, 2  # flags


@dataclass(frozen=True)
class Picture:
    """An image and, where one is known, its defect mask."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    mask: NDArray[np.uint8] | None  # [H, W], 0 or 255 (soft edges between)


def generator_for(seed: int, sample_id: str, *numbers: int) -> np.random.Generator:
    """Return the random generator that belongs to one copy of one sample."""
    return np.random.default_rng([seed, zlib.crc32(sample_id.encode()), *numbers])


def varied_picture(picture: Picture, recipe: AugmentRecipe, random: np.random.Generator) -> Picture:
    """Move, turn and light the picture a little; the mask moves along."""
    height, width, _ = picture.pixels.shape
    grid = _placement(height, width, recipe, random)
    image = torch.tensor(picture.pixels).permute(2, 0, 1)[None].float() / 255.0
    moved = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    pixels: NDArray[np.float32] = moved[0].permute(1, 2, 0).numpy()
    mask = picture.mask
    if mask is not None:
        soft = F.grid_sample(torch.tensor(mask)[None, None].float(), grid, align_corners=False)
        mask = soft[0, 0].round().to(torch.uint8).numpy()
    return Picture(_lit(pixels, recipe, random), mask)


def broken_picture(picture: Picture, random: np.random.Generator) -> Picture:
    """Paint one made defect into the picture; its mask says where."""
    height, width, _ = picture.pixels.shape
    soft_HW = _blob(height, width, random)
    pixels = picture.pixels.astype(np.float32)
    filling: NDArray[np.floating]
    kind = random.integers(3)
    if kind == 0:  # a piece of the same part in the wrong place
        shift = (int(random.integers(height // 4, height)), int(random.integers(width // 4, width)))
        filling = np.roll(pixels, shift, axis=(0, 1))[:, ::-1]
    elif kind == 1:  # a stain
        filling = pixels * random.uniform(0.2, 0.7) + random.uniform(0.0, 120.0, 3)
    else:  # a rough, dark or bright surface
        grain = ndimage.gaussian_filter(
            random.normal(size=(height, width, 1)), (random.uniform(0.5, 2.0),) * 2 + (0,)
        )
        filling = random.uniform(0.0, 255.0, 3) + grain / grain.std() * random.uniform(20.0, 70.0)
    opacity = soft_HW[..., None] * random.uniform(0.5, 1.0)
    mixed = pixels * (1.0 - opacity) + filling * opacity
    painted = np.ceil(soft_HW * 255.0).astype(np.uint8)
    mask = painted if picture.mask is None else np.maximum(painted, picture.mask)
    return Picture(np.clip(mixed, 0.0, 255.0).astype(np.uint8), mask)


def varied_window(
    window_CT: NDArray[np.float32], recipe: AugmentRecipe, random: np.random.Generator
) -> NDArray[np.float32]:
    """Change gain, moment and noise a little."""
    readings = window_CT.shape[1]
    mean_C1 = window_CT.mean(1, keepdims=True)
    gain = np.exp(random.normal() * recipe.sensor_gain)
    most = int(recipe.sensor_shift * readings)
    moved_CT = np.roll(window_CT - mean_C1, int(random.integers(-most, most + 1)), axis=1)
    scale_C1 = window_CT.std(1, keepdims=True) * recipe.sensor_noise * random.random()
    noise_CT = random.normal(size=window_CT.shape) * scale_C1
    return np.asarray(mean_C1 + moved_CT * gain + noise_CT, dtype=np.float32)


def broken_window(
    window_CT: NDArray[np.float32], random: np.random.Generator
) -> NDArray[np.float32]:
    """Add one made fault to one channel or more, in proportion to the channel's own deviation."""
    channels, readings = window_CT.shape
    hit_C: NDArray[np.bool_] = np.less(random.random(channels), 0.5)
    hit_C[random.integers(channels)] = True
    scale_C1 = np.maximum(window_CT.std(1, keepdims=True), 1e-6 + np.abs(window_CT).max() * 1e-3)
    time_T = np.arange(readings)
    fault_T: NDArray[np.float64]
    kind = random.integers(5)
    if kind == 0:  # impulses at a steady pace that ring off, as from a pitted rolling element
        fault_T = _impulses(readings, random)
    elif kind == 1:  # a tone with a harmonic
        frequency = random.uniform(2.0 / readings, 0.4)
        angle_T = 2.0 * np.pi * frequency * time_T + random.uniform(0.0, 2.0 * np.pi)
        fault_T = random.uniform(0.4, 2.0) * (np.sin(angle_T) + 0.5 * np.sin(2.0 * angle_T))
    elif kind == 2:  # a burst of noise
        width = random.uniform(0.03, 0.3) * readings
        envelope_T = np.exp(-0.5 * ((time_T - random.uniform(0, readings)) / width) ** 2)
        fault_T = random.normal(size=readings) * envelope_T * random.uniform(1.0, 4.0)
    elif kind == 3:  # a step
        height = random.choice([-1, 1]) * random.uniform(1.0, 4.0)
        fault_T = np.where(time_T > random.uniform(0.1, 0.9) * readings, height, 0.0)
    else:  # wide-band noise
        fault_T = random.standard_normal((readings,)) * random.uniform(0.6, 2.0)
    return np.asarray(window_CT + hit_C[:, None] * scale_C1 * fault_T, dtype=np.float32)


def _placement(
    height: int, width: int, recipe: AugmentRecipe, random: np.random.Generator
) -> torch.Tensor:
    """Return the sampling grid [1, H, W, 2] of a small turn, stretch and shift."""
    angle = np.deg2rad(random.uniform(-1.0, 1.0) * recipe.rotate_degrees)
    scale = 1.0 / (1.0 + random.uniform(-1.0, 1.0) * recipe.scale)
    shift_x, shift_y = random.uniform(-1.0, 1.0, 2) * recipe.shift * 2.0  # grid runs -1..1
    flip_x = -1.0 if recipe.flip_horizontal and random.random() < 0.5 else 1.0
    flip_y = -1.0 if recipe.flip_vertical and random.random() < 0.5 else 1.0
    aspect = width / height
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    theta = torch.tensor(
        [
            [cosine * flip_x, -sine / aspect * flip_y, shift_x],
            [sine * aspect * flip_x, cosine * flip_y, shift_y],
        ],
        dtype=torch.float32,
    )
    return F.affine_grid(theta[None], [1, 1, height, width], align_corners=False)


def _lit(
    pixels: NDArray[np.float32], recipe: AugmentRecipe, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Change gamma, contrast, brightness, colour and noise of [H, W, 3] in 0..1."""
    lit: NDArray[np.floating] = np.clip(pixels, 1e-4, 1.0) ** np.exp(
        random.uniform(-1.0, 1.0) * recipe.gamma
    )
    mean = lit.mean((0, 1), keepdims=True)
    lit = (lit - mean) * (1.0 + random.uniform(-1.0, 1.0) * recipe.contrast) + mean
    lit = lit + random.uniform(-1.0, 1.0) * recipe.brightness
    lit = lit * (1.0 + random.uniform(-1.0, 1.0, 3) * recipe.colour)
    noise = random.standard_normal(lit.shape, dtype=np.float32) * recipe.pixel_noise
    lit = lit + noise * random.random()
    return np.asarray(np.clip(lit * 255.0 + 0.5, 0.0, 255.0), dtype=np.uint8)


def _blob(height: int, width: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Return a soft mask [H, W] in 0..1 of a smooth shape that covers 0.2 % to 6 % of the image."""
    area = np.exp(random.uniform(np.log(0.002), np.log(0.06))) * height * width
    stretch = np.exp(random.uniform(-1.0, 1.0))  # from a dot to a scratch
    ry, rx = np.sqrt(area / np.pi) * stretch, np.sqrt(area / np.pi) / stretch
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = y - random.uniform(0.0, height), x - random.uniform(0.0, width)
    angle = random.uniform(0.0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    rough = ndimage.gaussian_filter(random.normal(size=(height, width)), max(1.5, min(rx, ry) / 2))
    distance = np.sqrt((u / rx) ** 2 + (v / ry) ** 2) + rough / rough.std() * 0.25
    return np.asarray(np.clip((1.2 - distance) / 0.2, 0.0, 1.0), dtype=np.float32)


def _impulses(readings: int, random: np.random.Generator) -> NDArray[np.float64]:
    period = max(4, int(readings / random.uniform(2.0, 40.0)))
    train_T = np.zeros(readings)
    train_T[int(random.integers(period)) :: period] = 1.0
    length = max(4, min(period, int(random.uniform(0.02, 0.1) * readings)))
    ring_t = np.arange(length)
    ring_t = np.exp(-4.0 * ring_t / length) * np.cos(ring_t * random.uniform(0.3, 2.8))
    return np.asarray(np.convolve(train_T, ring_t)[:readings] * random.uniform(1.5, 6.0))
