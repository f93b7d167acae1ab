"""Mild changes to a sensor window that keep its label.

What a device would never show the model is not made here. A lost sensor, a gap in the stream and
a channel that stands still are refused there, and the part is judged by its image: that is a mask
(`train.withhold`), not a value. A channel with an open contact is not refused: its level stays and
a faint rest of its movement, 40 dB down. That is a value, and `sensor_drop` and `sensor_gap` make
it.

Shapes: C channels, T readings, F frequencies, S half waves.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from distill.recipe import AugmentRecipe
from edge.errors import InputError

_OPEN_CONTACT = 0.01  # of the movement crosses an open contact: 40 dB down
_SWINGS = 3  # a window's speed changes in up to so many half waves


def varied_window(
    window_CT: NDArray[np.float32], recipe: AugmentRecipe, random: np.random.Generator
) -> NDArray[np.float32]:
    """Change clock, speed, spectrum, gains, noise and contact a little, each around its level.

    Every change has random numbers of its own: switching one off leaves the others as they were.
    Raises InputError for readings that are not finite.
    """
    refuse_not_finite(window_CT)
    time, band, gain, noise, contact = random.spawn(5)
    moved_CT = _timed(window_CT, recipe, time)
    moved_CT = _silenced(moved_CT, recipe, band)
    moved_CT = _scaled(moved_CT, recipe, gain)
    moved_CT = _with_noise(moved_CT, recipe, noise)
    return np.asarray(_interrupted(moved_CT, recipe, contact), dtype=np.float32)


def refuse_not_finite(window_CT: NDArray[np.float32]) -> None:
    """Raise InputError for a window that no student should see."""
    bad = window_CT.size - int(np.count_nonzero(np.isfinite(window_CT)))
    if bad:
        raise InputError(
            where="sensor window",
            expected="finite readings",
            found=f"{bad} NaN or infinite of {window_CT.size}",
            do="Check the sensor and its cable; `edge recordings show` lists every such window.",
        )


def _timed(
    window_CT: NDArray[np.float32], recipe: AugmentRecipe, random: np.random.Generator
) -> NDArray[np.floating]:
    """Shift the window against the image's clock and let the machine's speed drift within it.

    What the recording does not hold is mirrored at the window's end. Taken from the other end
    instead it would make a jump, hence a click in every spectrum, that no machine made.
    """
    readings = window_CT.shape[1]
    most = int(recipe.sensor_shift * readings)
    shift = int(random.integers(-most, most, endpoint=True))
    speed_S = random.uniform(-1.0, 1.0, _SWINGS)
    time_T = np.arange(readings)
    if recipe.sensor_warp:
        place_T = time_T + shift + (speed_S * recipe.sensor_warp / _SWINGS) @ _swings(readings)
        mean_C1 = window_CT.mean(1, keepdims=True, dtype=np.float64)
        moved = [
            ndimage.map_coordinates(movement_T, place_T[None], order=3, mode="mirror")
            for movement_T in window_CT - mean_C1
        ]
        return np.asarray(mean_C1 + np.stack(moved))
    if not shift:
        return window_CT
    around_T = np.abs(time_T + shift)
    return window_CT[:, np.minimum(around_T, 2 * (readings - 1) - around_T)]


@lru_cache(maxsize=4)
def _swings(readings: int) -> NDArray[np.float64]:
    """Return [S, T]: what half waves of speed add to the time; the ends stay.

    Each is the integral of a cosine of height 1, so that the local speed is 1 and at most the sum
    of the weights more or less.
    """
    angle_S1 = np.pi * np.arange(1, _SWINGS + 1)[:, None] / (readings - 1)
    return np.asarray(np.sin(angle_S1 * np.arange(readings)) / angle_S1)


def _silenced(
    window_CT: NDArray[np.floating], recipe: AugmentRecipe, random: np.random.Generator
) -> NDArray[np.floating]:
    """Silence a band of the spectrum, the level aside.

    The frequency mask of SpecAugment (Park et al., arXiv 1904.08779, section 2), on the readings'
    own spectrum, so that teacher and student hear the same.
    """
    width, start = random.random(2)
    frequencies = window_CT.shape[1] // 2  # besides the level
    silent = int(width * recipe.sensor_mask * frequencies + 0.5)
    if not silent:
        return window_CT
    first = 1 + int(start * (frequencies - silent + 1))
    # Only the band is taken away: what it does not hold stays as exact as it was.
    mean_C1 = window_CT.mean(1, keepdims=True, dtype=np.float64)
    spectrum_CF = np.fft.rfft(window_CT - mean_C1, axis=1)
    spectrum_CF[:, :first] = 0.0
    spectrum_CF[:, first + silent :] = 0.0
    return window_CT - np.fft.irfft(spectrum_CF, n=window_CT.shape[1], axis=1)


def _scaled(
    window_CT: NDArray[np.floating], recipe: AugmentRecipe, random: np.random.Generator
) -> NDArray[np.floating]:
    """Stretch the movement about each channel's level: all channels alike, and each by itself."""
    common, each_C1 = random.normal(), random.normal(size=(len(window_CT), 1))
    if not recipe.sensor_gain and not recipe.sensor_channel_gain:
        return window_CT
    gain_C1 = np.exp(common * recipe.sensor_gain + each_C1 * recipe.sensor_channel_gain)
    mean_C1 = window_CT.mean(1, keepdims=True, dtype=np.float64)
    return np.asarray(mean_C1 + (window_CT - mean_C1) * gain_C1)


def _with_noise(
    window_CT: NDArray[np.floating], recipe: AugmentRecipe, random: np.random.Generator
) -> NDArray[np.floating]:
    if not recipe.sensor_noise:
        return window_CT
    deviation_C1 = window_CT.std(1, keepdims=True, dtype=np.float64)
    noise_CT = random.normal(size=window_CT.shape) * random.random()
    return np.asarray(window_CT + noise_CT * deviation_C1 * recipe.sensor_noise)


def _interrupted(
    window_CT: NDArray[np.floating], recipe: AugmentRecipe, random: np.random.Generator
) -> NDArray[np.floating]:
    """Open the contact of one channel for a stretch, or for the whole window.

    A window's only channel is never dropped whole: that would be a missing sensor.
    """
    channels, readings = window_CT.shape
    drop, length, start = random.random(3)
    channel = int(random.integers(channels))
    lost = int(length * recipe.sensor_gap * readings + 0.5)
    first = int(start * (readings - lost + 1))
    if channels > 1 and drop < recipe.sensor_drop:
        first, lost = 0, readings
    if not lost:
        return window_CT
    open_CT = np.array(window_CT, dtype=np.float64)
    mean = open_CT[channel].mean()
    stretch_T = open_CT[channel, first : first + lost]
    stretch_T[:] = mean + (stretch_T - mean) * _OPEN_CONTACT
    return open_CT
