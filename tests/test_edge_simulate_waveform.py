"""The simulated sensor: physical levels, a bearing's signature, and stuck stretches."""

import numpy as np
import pytest

from edge.simulate.part import BEARING, OK, Part
from edge.simulate.textures import FINISHES, HARD, SOFT
from edge.simulate.waveform import (
    BALL_PASS_ORDER,
    RATE_HZ,
    READINGS,
    RESONANCE_HZ,
    SPINDLE_HZ,
    window_of,
)


def windows(count=40, label=OK, sound=SOFT, shift=0.5, window="whole"):
    part = Part(0, label, FINISHES[0], sound, shift, window)
    return np.stack([window_of(part, np.random.default_rng(seed)) for seed in range(count)])


def band_power(values, low_hz, high_hz):
    frequencies = np.fft.rfftfreq(values.shape[-1], 1 / RATE_HZ)
    power = np.abs(np.fft.rfft(values - values.mean(axis=-1, keepdims=True))) ** 2
    return power[..., (frequencies > low_hz) & (frequencies < high_hz)].sum(axis=-1)


def test_readings_are_finite_and_within_the_sensors_range():
    values = windows(label=BEARING, sound=HARD)
    assert values.shape == (40, 2, READINGS)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert np.abs(values[:, 0]).max() < 16  # g
    assert (values[:, 1] > 0).all()  # A


def test_hard_parts_are_louder_and_draw_more_current_than_any_soft_one():
    soft, hard = windows(sound=SOFT), windows(sound=HARD)
    assert soft[:, 0].std(axis=1).max() < hard[:, 0].std(axis=1).min()
    assert soft[:, 1].mean(axis=1).max() < hard[:, 1].mean(axis=1).min()


def test_a_worn_bearing_rings_at_the_resonance_and_hardly_moves_the_level():
    healthy, worn = windows(), windows(label=BEARING)
    ringing = (RESONANCE_HZ - 300, RESONANCE_HZ + 300)
    assert np.median(band_power(worn[:, 0], *ringing)) > 3 * np.median(
        band_power(healthy[:, 0], *ringing)
    )
    assert worn[:, 0].std(axis=1).mean() == pytest.approx(healthy[:, 0].std(axis=1).mean(), rel=0.2)


def test_the_strikes_come_at_the_ball_pass_frequency():
    worn = windows(count=60, label=BEARING)[:, 0]
    spectrum = np.fft.rfft(worn - worn.mean(axis=1, keepdims=True))
    frequencies = np.fft.rfftfreq(READINGS, 1 / RATE_HZ)
    spectrum[:, np.abs(frequencies - RESONANCE_HZ) > 600] = 0
    envelope = np.abs(np.fft.irfft(spectrum, READINGS))
    power = np.mean(
        np.abs(np.fft.rfft(envelope - envelope.mean(axis=1, keepdims=True))) ** 2, axis=0
    )
    searched = (frequencies > 60) & (frequencies < 180)
    peak_hz = frequencies[searched][np.argmax(power[searched])]
    assert peak_hz == pytest.approx(BALL_PASS_ORDER * SPINDLE_HZ, abs=2 * RATE_HZ / READINGS)


def test_a_stuck_window_holds_one_reading_for_a_while_in_one_channel():
    for values in windows(window="stuck"):
        runs = [np.diff(np.flatnonzero(np.diff(channel) != 0)).max() for channel in values]
        assert max(runs) >= 0.08 * READINGS - 2
        assert min(runs) < 0.02 * READINGS


def test_vibration_and_current_drift_over_the_shift():
    early, late = windows(shift=0.0), windows(shift=1.0)
    assert late[:, 0].mean() - early[:, 0].mean() == pytest.approx(0.05, abs=0.02)
    assert late[:, 1].mean() > 1.03 * early[:, 1].mean()
