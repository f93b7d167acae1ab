"""Stretches without change and piles at a rail, and what looks like them but is none."""

import numpy as np
import pytest

from edge.readings import longest_run, rail_share, stuck_from

READINGS = 2048
TIME = np.arange(READINGS)


def test_longest_run_counts_equal_neighbours():
    assert longest_run(np.float32([1, 1, 2, 2, 2, 1])) == 3
    assert longest_run(np.float32([5])) == 1
    assert (stuck_from(2048), stuck_from(32)) == (103, 16)


@pytest.mark.parametrize("level", [0.9, 0.8, 0.5])
def test_clipped_sine_and_noise_are_seen_on_both_rails(level):
    sine = np.clip(np.sin(2 * np.pi * TIME / 37.3), -level, level).astype(np.float32)
    low, high = rail_share(sine)
    assert min(low, high) > 0.1
    noise = np.random.default_rng(3).normal(size=READINGS)
    rail = np.quantile(np.abs(noise), level)
    assert min(rail_share(np.clip(noise, -rail, rail).astype(np.float32))) > 0.02


def test_one_clipped_rail_is_enough():
    noise = np.random.default_rng(3).normal(size=READINGS).astype(np.float32)
    low, high = rail_share(np.minimum(noise, np.float32(1.5)))
    assert low == 0.0
    assert high == pytest.approx(np.mean(noise >= 1.5))


def test_no_sine_looks_clipped_be_it_locked_to_the_sampling_or_coarsely_converted():
    rng = np.random.default_rng(0)
    seen = 0
    for round_number in range(3000):
        period = rng.integers(2, 64) if round_number % 2 else rng.uniform(2.1, 4000)
        phase = rng.uniform(0, 7) * rng.integers(0, 2)
        amplitude = rng.uniform(0.1, 10)
        values = rng.uniform(-20, 20) + amplitude * np.sin(2 * np.pi * TIME / period + phase)
        if round_number % 3:
            step = amplitude * 10 ** rng.uniform(-4, -0.5)
            values = np.round(values / step) * step
        seen += 1
        assert max(rail_share(values.astype(np.float32))) == 0.0, (period, phase, amplitude)
    assert seen == 3000


@pytest.mark.parametrize(
    "values",
    [
        np.where(TIME % 10 < 9, 1.0, 2.0),  # a switch
        np.maximum(np.sin(TIME / 9), 0.0),  # rests at 0
        np.zeros(READINGS),
        TIME * 0.01,
        np.random.default_rng(1).normal(size=READINGS),
        np.round(np.random.default_rng(1).normal(size=READINGS) * 4) / 4,
    ],
)
def test_other_honest_signals_do_not_look_clipped(values):
    assert max(rail_share(values.astype(np.float32))) == 0.0
