"""What a copy costs: picture, made defect and window, by the recipe `tiny`, in one thread.

The named alternative for pictures is kornia's own augmentation layer with the nearest changes that
it has, at the same amounts (no shadow, no half-pixel blur); ours takes from kornia the functions
remap and get_perspective_transform. The layer draws from torch's global generator, which a copy
that is made again on its own must neither use nor touch: here it is forked and seeded for each
copy, and the fork is counted.
For windows the alternative is three lines of numpy: gain, np.roll and noise.

Calls alternate, so that a busy machine is busy for both.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from itertools import count

import kornia.augmentation as kornia_layers
import msgspec
import numpy as np
import torch

from distill.augment.made_defects import SHAPES, broken_picture
from distill.augment.made_faults import broken_window
from distill.augment.pictures import Picture, varied_picture
from distill.augment.windows import varied_window
from distill.recipe import AugmentRecipe, load_recipe

SIZES = ((256, 256), (480, 640))
READINGS = (2048, 12_000)
_CALLS = 120


def run(quick: bool = False) -> dict:
    """Print and return milliseconds a copy and ratios; nothing is promised here."""
    recipe, calls = load_recipe("tiny").augment, 10 if quick else _CALLS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures = {
            "pictures": {f"{h}x{w}": _pictures(h, w, recipe, calls) for h, w in SIZES},
            "windows": {
                f"2x{readings}": _windows(readings, recipe, calls) for readings in READINGS
            },
        }
    finally:
        torch.set_num_threads(threads)
    print("\na copy by the recipe tiny, milliseconds (p50) in one thread")
    for kind, tables in figures.items():
        for size, table in tables.items():
            told = ", ".join(f"{name} {value:.2f}" for name, value in table.items())
            print(f"  {kind:9}{size:9}{told}")
    return figures


def _pictures(height: int, width: int, recipe: AugmentRecipe, calls: int) -> dict[str, float]:
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    pixels = pixels.repeat(8, axis=0).repeat(8, axis=1)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 : height // 2, width // 3 : width // 2] = 255
    picture, seeds = Picture(pixels, mask), count()
    layer = _kornias(height, width, recipe)

    def ours() -> None:
        varied_picture(picture, recipe, np.random.default_rng(next(seeds)))

    def theirs() -> None:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of its elastic layer, at each call
            torch.manual_seed(next(seeds))
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255.0
            image, moved = layer(image, torch.from_numpy(mask)[None, None].float() / 255.0)
            (image[0].permute(1, 2, 0).clamp(0.0, 1.0) * 255.0).to(torch.uint8).numpy()
            (moved[0, 0] * 255.0).to(torch.uint8).numpy()

    def made(shape: str) -> Callable[[], None]:
        alone = {key: float(key == shape) for key in SHAPES}
        one = msgspec.structs.replace(recipe, **alone)
        return lambda: broken_picture(picture, one, np.random.default_rng(next(seeds))) and None

    spent = _alternating({"ours": ours, "kornia": theirs, **{s: made(s) for s in SHAPES}}, calls)
    return {**spent, "ours/kornia": spent["ours"] / spent["kornia"]}


def _kornias(
    height: int, width: int, recipe: AugmentRecipe
) -> kornia_layers.AugmentationSequential:
    """Return the nearest that kornia's layers have to each change; each one always happens."""
    side, r = min(height, width), recipe
    return kornia_layers.AugmentationSequential(
        kornia_layers.RandomAffine(
            r.rotate_degrees,
            translate=(r.shift, r.shift),
            scale=(1.0 - r.scale, 1.0 + r.scale),
            padding_mode="reflection",
            p=1.0,
        ),
        kornia_layers.RandomPerspective(2.0 * r.perspective, p=1.0),
        kornia_layers.RandomElasticTransform(
            kernel_size=(63, 63),
            sigma=(16.0, 16.0),
            alpha=(r.elastic, r.elastic),
            align_corners=True,
            p=1.0,
        ),
        kornia_layers.RandomLinearIllumination(gain=(0.01, r.light_gradient), p=1.0),
        kornia_layers.RandomGaussianBlur((5, 5), (0.1, max(0.2, r.defocus * side)), p=1.0),
        kornia_layers.RandomMotionBlur(3, 180.0, 0.0, p=1.0),
        kornia_layers.ColorJiggle(r.brightness, r.contrast, r.colour, 0.0, p=1.0),
        kornia_layers.RandomGamma((np.exp(-r.gamma), np.exp(r.gamma)), p=1.0),
        kornia_layers.RandomGaussianNoise(0.0, r.pixel_noise, p=1.0),
        data_keys=["input", "mask"],
    )


def _windows(readings: int, recipe: AugmentRecipe, calls: int) -> dict[str, float]:
    window = np.random.default_rng(0).normal(3.0, 1.0, (2, readings)).astype(np.float32)
    seeds = count()

    def ours() -> None:
        varied_window(window, recipe, np.random.default_rng(next(seeds)))

    def plain() -> None:
        chance = np.random.default_rng(next(seeds))
        mean = window.mean(1, keepdims=True)
        most = int(recipe.sensor_shift * readings)
        moved = np.roll(window - mean, int(chance.integers(-most, most + 1)), axis=1)
        noise = chance.normal(size=window.shape) * window.std(1, keepdims=True)
        gain = np.exp(chance.normal() * recipe.sensor_gain)
        (mean + moved * gain + noise * recipe.sensor_noise).astype(np.float32)

    def fault() -> None:
        broken_window(window, recipe, np.random.default_rng(next(seeds)))

    spent = _alternating({"ours": ours, "plain numpy": plain, "made fault": fault}, calls)
    return {**spent, "ours/plain": spent["ours"] / spent["plain numpy"]}


def _alternating(works: dict[str, Callable[[], None]], calls: int) -> dict[str, float]:
    """Return each work's median in milliseconds; the first calls, which warm up, are left out."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(calls + 3):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            spent[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(times[3:]) for name, times in spent.items()}
