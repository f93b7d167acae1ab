"""The camera of the simulated line: a machined plate on a dark fixture, and what may mar it.

Shapes are distance fields in pixels, so that every edge is smooth at every image size. Sizes are
shares of the image's height unless they say otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge.simulate.part import SURFACE, Part

Plane = NDArray[np.float64]  # [H, W]

FIXTURE_RGB = (38.0, 40.0, 44.0)
TEXTURE_SPAN = 300.0  # texture pixels along the image's longer side
TEXTURE_SIZE = 512
HOLE_RADIUS = 0.09
MILLED_WIDTH = 0.10
RUST = np.array([-0.10, -0.40, -0.65])  # what a stain takes from R, G and B
MASK_FROM = 0.3  # a pixel is defect where the defect covers at least this share of it


@dataclass(frozen=True)
class _Plate:
    """Where the plate lies: pixel coordinates turned into its own, origin at its centre."""

    across: Plane  # pixels, along the plate's long side
    down: Plane  # pixels, along its short side
    half_width: float
    half_height: float
    height: int  # of the image
    angle: float  # radians


def picture_of(
    part: Part, texture: Image.Image, size: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Return pixels [H, W, 3] RGB of one part, and its defect mask [H, W]; `size` is (W, H)."""
    plate = _placed(size, rng)
    shade = 1.0 + part.finish.contrast * _texture(texture, size, plate.angle, rng)
    shade = _machined(shade, plate, rng)
    colour = np.asarray(part.finish.colour) * rng.normal(1.0, 0.03)
    pixels = shade[:, :, None] * colour
    on_plate = _inside(_plate_distance(plate))
    mask = None
    if part.label == SURFACE:
        cover, change = _defect(plate, rng)
        cover = cover * on_plate
        pixels = pixels * (1.0 + cover[:, :, None] * change)
        mask = cover >= MASK_FROM
    on_plate = on_plate[:, :, None]
    pixels = on_plate * pixels + (1.0 - on_plate) * np.asarray(FIXTURE_RGB)
    pixels = pixels * _light(part, size, rng)[:, :, None]
    pixels += rng.normal(0.0, 2.5, pixels.shape)  # the sensor's own noise
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8), mask


def _placed(size: tuple[int, int], rng: np.random.Generator) -> _Plate:
    width, height = size
    angle = math.radians(rng.uniform(-3.0, 3.0))
    centre = (width * rng.normal(0.5, 0.01), height * rng.normal(0.5, 0.01))
    down, across = np.mgrid[0:height, 0:width].astype(np.float64) + 0.5
    across, down = across - centre[0], down - centre[1]
    cosine, sine = math.cos(angle), math.sin(angle)
    return _Plate(
        across=cosine * across + sine * down,
        down=cosine * down - sine * across,
        half_width=0.44 * width,
        half_height=0.42 * height,
        height=height,
        angle=angle,
    )


def _texture(
    texture: Image.Image, size: tuple[int, int], angle: float, rng: np.random.Generator
) -> Plane:
    """Cut a turned, perhaps mirrored piece out of the texture; mean 0, standard deviation 1."""
    scale = TEXTURE_SPAN / max(size) * rng.uniform(0.85, 1.15)
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    room = TEXTURE_SIZE - 1.15 * TEXTURE_SPAN - 40.0
    left, top = rng.uniform(20.0, 20.0 + room, 2)
    if rng.uniform() < 0.5:
        texture = texture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # Output (x, y) reads the texture at (cosine x + sine y + left, cosine y - sine x + top).
    turned = (cosine, sine, left, -sine, cosine, top + max(0.0, sine * size[0]))
    piece = texture.transform(
        size, Image.Transform.AFFINE, turned, resample=Image.Resampling.BILINEAR
    )
    shades = np.asarray(piece, dtype=np.float64)
    normal: Plane = (shades - shades.mean()) / shades.std()
    return np.clip(normal, -2.0, 2.0)


def _machined(shade: Plane, plate: _Plate, rng: np.random.Generator) -> Plane:
    """Add a drilled hole with a bright chamfer, and a smooth milled edge with feed marks."""
    marks = 1.22 + 0.05 * np.sin(plate.across * (2 * math.pi / max(4.0, 0.03 * plate.height)))
    milled = _inside(plate.half_height - MILLED_WIDTH * plate.height - plate.down)
    shade = (1.0 - milled) * marks + milled * shade
    centre = np.array([0.55 * plate.half_width, -0.35 * plate.half_height])
    centre += rng.normal(0.0, 0.003 * plate.height, 2)
    radius = HOLE_RADIUS * plate.height
    distance = np.hypot(plate.across - centre[0], plate.down - centre[1]) - radius
    chamfer = np.exp(-((distance / (0.018 * plate.height)) ** 2))
    shade = shade * (1.0 + 0.45 * chamfer)
    hole = _inside(-distance)
    return shade * (1.0 - hole) + 0.18 * hole


def _defect(plate: _Plate, rng: np.random.Generator) -> tuple[Plane, NDArray[np.float64]]:
    """Return how far a defect covers each pixel, and how it changes R, G and B there (shares)."""
    kind = rng.integers(3)
    # On the textured face: off the rim, the milled edge and the hole's corner.
    across = rng.uniform(-0.75, 0.25) * plate.half_width
    down = rng.uniform(-0.7, 0.45) * plate.half_height
    strength = rng.uniform(0.6, 1.0)
    if kind == 0:  # bare metal, or a groove full of dirt
        change = 0.9 * strength if rng.uniform() < 0.6 else -0.7 * strength
        return _scratch(plate, across, down, rng), np.full(3, change)
    if kind == 1:
        return _pit(plate, across, down, rng), np.full(3, -0.85 * strength)
    return _stain(plate, across, down, rng), strength * RUST


def _scratch(plate: _Plate, across: float, down: float, rng: np.random.Generator) -> Plane:
    """Cover of a bent line, 30 to 60 % of the height long."""
    length = rng.uniform(0.3, 0.6) * plate.height
    heading = rng.uniform(0.0, 2 * math.pi)
    along = np.linspace(-0.5, 0.5, 13) * length
    bend = rng.uniform(-0.25, 0.25) * length * (1.0 - (2.0 * along / length) ** 2)
    xs = across + along * math.cos(heading) - bend * math.sin(heading)
    ys = down + along * math.sin(heading) + bend * math.cos(heading)
    nearest = np.full(plate.across.shape, np.inf)
    for x, y, dx, dy in zip(xs[:-1], ys[:-1], np.diff(xs), np.diff(ys), strict=True):
        from_x, from_y = plate.across - x, plate.down - y
        share = np.clip((from_x * dx + from_y * dy) / (dx * dx + dy * dy), 0.0, 1.0)
        nearest = np.minimum(nearest, np.hypot(from_x - share * dx, from_y - share * dy))
    half_width = max(0.8, rng.uniform(0.006, 0.012) * plate.height)
    return _inside(half_width - nearest)


def _pit(plate: _Plate, across: float, down: float, rng: np.random.Generator) -> Plane:
    """Cover of a turned ellipse, 3.5 to 7 % of the height in radius."""
    radius = max(1.5, rng.uniform(0.035, 0.07) * plate.height)
    heading, flatness = rng.uniform(0.0, math.pi), rng.uniform(0.6, 1.0)
    x, y = plate.across - across, plate.down - down
    along = math.cos(heading) * x + math.sin(heading) * y
    beside = (math.cos(heading) * y - math.sin(heading) * x) / flatness
    return _inside(radius - np.hypot(along, beside))


def _stain(plate: _Plate, across: float, down: float, rng: np.random.Generator) -> Plane:
    """Cover of a soft blot, 8 to 16 % of the height in radius, its outline waved."""
    radius = rng.uniform(0.08, 0.16) * plate.height
    x, y = plate.across - across, plate.down - down
    angle = np.arctan2(y, x)
    waved = radius * np.ones_like(angle)
    for lobes in (2, 3, 5):
        waved += 0.12 * radius * np.sin(lobes * angle + rng.uniform(0.0, 2 * math.pi))
    softness = 0.25 * radius
    return np.clip((waved - np.hypot(x, y)) / softness, 0.0, 1.0)


def _light(part: Part, size: tuple[int, int], rng: np.random.Generator) -> Plane:
    """Lamp from one side, darker corners, exposure jitter; the lamp ages over the shift."""
    width, height = size
    y, x = np.mgrid[-1.0 : 1.0 : height * 1j, -1.0 : 1.0 : width * 1j]
    heading = rng.uniform(0.0, 2 * math.pi)
    slope = 0.10 * (math.cos(heading) * x + math.sin(heading) * y)
    level = (1.0 - 0.10 * part.shift) * rng.normal(1.0, 0.03)
    light: Plane = level * (1.05 + slope - 0.10 * (x * x + y * y) / 2.0)
    return light


def _plate_distance(plate: _Plate) -> Plane:
    """Pixels from the plate's rounded outline, positive inside."""
    corner = 0.05 * plate.height
    beyond_x = np.abs(plate.across) - (plate.half_width - corner)
    beyond_y = np.abs(plate.down) - (plate.half_height - corner)
    outside = np.hypot(np.maximum(beyond_x, 0.0), np.maximum(beyond_y, 0.0))
    distance: Plane = corner - outside - np.minimum(np.maximum(beyond_x, beyond_y), 0.0)
    return distance


def _inside(distance: Plane) -> Plane:
    """Turn a signed distance in pixels into a cover of 0 to 1, smooth over one pixel."""
    return np.clip(distance + 0.5, 0.0, 1.0)
