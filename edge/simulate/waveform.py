"""The sensor of the simulated line: spindle vibration in g and motor current in A.

Levels follow the part's material. A worn outer race strikes at its ball-pass frequency, and each
strike rings the housing at its resonance: the textbook signature (Randall and Antoni, "Rolling
element bearing diagnostics - a tutorial", MSSP 25, 2011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.sample import Channel
from edge.simulate.part import BEARING, Part

RATE_HZ = 8000.0
READINGS = 2048
CHANNELS = (Channel("vibration", "g", RATE_HZ), Channel("current", "A", RATE_HZ))

SPINDLE_HZ = 29.5
TEETH = 13  # of the gear that drives the spindle
BALL_PASS_ORDER = 3.58  # strikes per turn of a damaged outer race
RESONANCE_HZ = 2800.0
RING_DECAY_S = 0.0012
CUTTING_HZ, CUTTING_WIDTH_HZ = 1200.0, 500.0
MAINS_RIPPLE_HZ = 100.0
ADC_STEP = np.array([[1 / 2048], [1 / 1024]])  # g and A: a 16-bit converter's resolution

Readings = NDArray[np.float64]


def window_of(part: Part, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the readings [2, 2048] of one part, in g and A, as the converter gives them."""
    turns_T = np.arange(READINGS) / RATE_HZ * rng.normal(SPINDLE_HZ, 0.25) + rng.uniform()
    level_g = part.sound.vibration_g * rng.normal(1.0, 0.08) * (1.0 + 0.10 * part.shift)
    vibration_T = level_g * (_turning(turns_T, rng) + 0.7 * _cutting(rng))
    current_T = _current(part, turns_T, rng)
    if part.label == BEARING:
        # Severity is relative to the level, so that no simple level betrays the damage.
        vibration_T += level_g * rng.uniform(0.5, 1.8) * _strikes(turns_T, rng)
        current_T *= 1.0 + 0.010 * np.sin(2 * np.pi * BALL_PASS_ORDER * turns_T)
    vibration_T += 0.05 * part.shift + rng.normal(0.0, 0.01, READINGS)  # bias drifts as it warms
    values_CT = np.stack([vibration_T, current_T])
    if part.window == "stuck":
        _stick(values_CT, rng)
    converted_CT: NDArray[np.float32] = np.round(values_CT / ADC_STEP) * ADC_STEP
    return converted_CT.astype(np.float32)


def _turning(turns_T: Readings, rng: np.random.Generator) -> Readings:
    """Unbalance, misalignment and gear mesh: sines locked to the spindle."""
    phases = rng.uniform(0.0, 2 * np.pi, 3)
    angle_T = 2 * np.pi * turns_T
    mesh_T = np.sin(TEETH * angle_T + phases[2]) * (1.0 + 0.3 * np.sin(angle_T))
    turning_T: Readings = (
        0.6 * np.sin(angle_T + phases[0]) + 0.35 * np.sin(2 * angle_T + phases[1]) + 0.5 * mesh_T
    )
    return turning_T


def _cutting(rng: np.random.Generator) -> Readings:
    """Noise of the cut, RMS 1: white noise shaped to a broad hump."""
    frequencies = np.fft.rfftfreq(READINGS, 1 / RATE_HZ)
    shape = np.exp(-(((frequencies - CUTTING_HZ) / CUTTING_WIDTH_HZ) ** 2)) + 0.05
    noise_T: Readings = np.fft.irfft(np.fft.rfft(rng.normal(size=READINGS)) * shape, READINGS)
    noise_T /= noise_T.std()
    return noise_T


def _strikes(turns_T: Readings, rng: np.random.Generator) -> Readings:
    """Ringing after each pass of a ball over the damage, peak about 1, with a little slip."""
    passes = (turns_T - turns_T[0]) * BALL_PASS_ORDER + rng.uniform()
    count = int(passes[-1]) + 1
    slipped = np.arange(1, count + 1) + rng.normal(0.0, 0.01, count)
    struck = np.searchsorted(passes, slipped)
    train_T = np.zeros(READINGS)
    inside = struck < READINGS
    train_T[struck[inside]] = rng.normal(1.0, 0.2, count)[inside]
    after_s = np.arange(int(6 * RING_DECAY_S * RATE_HZ)) / RATE_HZ
    ring = np.exp(-after_s / RING_DECAY_S) * np.sin(2 * np.pi * RESONANCE_HZ * after_s + 0.5)
    return np.convolve(train_T, ring)[:READINGS]


def _current(part: Part, turns_T: Readings, rng: np.random.Generator) -> Readings:
    """Mean load of the finish, mains ripple, one swing per turn; less while the oil is cold."""
    warm = 1.0 - 0.06 * np.exp(-6.0 * part.shift)
    mean_a = part.sound.current_a * rng.normal(1.0, 0.03) * warm
    time_s = np.arange(READINGS) / RATE_HZ
    ripple_T = 0.06 * np.sin(2 * np.pi * MAINS_RIPPLE_HZ * time_s + rng.uniform(0, 2 * np.pi))
    swing_T = 0.03 * np.sin(2 * np.pi * turns_T)
    current_T: Readings = mean_a * (1.0 + ripple_T + swing_T) + rng.normal(0.0, 0.03, READINGS)
    return current_T


def _stick(values_CT: Readings, rng: np.random.Generator) -> None:
    """Hold one channel at one reading for 8 to 20 % of the window, in place."""
    channel = rng.integers(len(values_CT))
    length = int(READINGS * rng.uniform(0.08, 0.20))
    start = rng.integers(READINGS - length)
    values_CT[channel, start : start + length] = values_CT[channel, start]
