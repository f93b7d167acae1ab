"""Made faults: what breaks the sensor window of a normal part.

Shapes: C channels, T readings.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distill.augment.windows import refuse_not_finite
from distill.recipe import AugmentRecipe


def broken_window(
    window_CT: NDArray[np.float32], recipe: AugmentRecipe, random: np.random.Generator
) -> NDArray[np.float32]:
    """Add one made fault to one channel or more, in proportion to the channel's own deviation.

    With `sensor_fault` at 0 the window comes back as it is. Raises InputError for readings that
    are not finite.
    """
    refuse_not_finite(window_CT)
    if not recipe.sensor_fault:
        return window_CT
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
    strength_C1 = hit_C[:, None] * scale_C1 * recipe.sensor_fault
    return np.asarray(window_CT + strength_C1 * fault_T, dtype=np.float32)


def _impulses(readings: int, random: np.random.Generator) -> NDArray[np.float64]:
    period = max(4, int(readings / random.uniform(2.0, 40.0)))
    train_T = np.zeros(readings)
    train_T[int(random.integers(period)) :: period] = 1.0
    length = max(4, min(period, int(random.uniform(0.02, 0.1) * readings)))
    ring_t = np.arange(length)
    ring_t = np.exp(-4.0 * ring_t / length) * np.cos(ring_t * random.uniform(0.3, 2.8))
    return np.asarray(np.convolve(train_T, ring_t)[:readings] * random.uniform(1.5, 6.0))
