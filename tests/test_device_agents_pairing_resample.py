"""Resampling: against the analytic signal, within the stated error."""

import numpy as np
import pytest

from device_agents.pairing.resample import PASS_BAND, Resampler, resampler_for

SAMPLES = 2048
FASTER = [(48_000.0, 12_000.0), (25_600.0, 12_000.0), (44_100.0, 12_000.0), (13_000.0, 12_000.0)]


def sine_through(resampler: Resampler, hz: float, rate_in_hz: float) -> np.ndarray:
    """A sine of amplitude 1, its middle resampled with room on both sides."""
    start = resampler.margin
    readings = start + int(SAMPLES * resampler.step) + 2 * resampler.margin + 2
    time_s = (np.arange(readings) - start) / rate_in_hz
    values = np.sin(2 * np.pi * hz * time_s + 0.3).astype(np.float32)
    return resampler.resampled(values[None], start)[0]


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), [*FASTER, (11_000.0, 12_000.0)])
def test_sines_in_the_pass_band_come_out_as_they_are(rate_in_hz, rate_out_hz):
    resampler = resampler_for(rate_in_hz, rate_out_hz, SAMPLES)
    lower_hz = min(rate_in_hz, rate_out_hz) / 2
    time_s = np.arange(SAMPLES) / rate_out_hz
    for hz in np.linspace(0.0, PASS_BAND, 19) * lower_hz:
        expected = np.sin(2 * np.pi * hz * time_s + 0.3)
        found = sine_through(resampler, hz, rate_in_hz)
        assert np.abs(found - expected).max() < 1.5e-4, hz


@pytest.mark.parametrize(("rate_in_hz", "rate_out_hz"), FASTER)
def test_nothing_above_the_new_band_folds_back(rate_in_hz, rate_out_hz):
    resampler = resampler_for(rate_in_hz, rate_out_hz, SAMPLES)
    for hz in np.linspace(rate_out_hz / 2, rate_in_hz / 2 - 1, 25):
        assert np.abs(sine_through(resampler, hz, rate_in_hz)).max() < 1.2e-4, hz


def test_constant_stays_the_constant_it_is_up_to_the_windows_ends():
    values = np.full((3, 4 * SAMPLES), 9.81, np.float32)
    found = resampler_for(48_000.0, 12_000.0, SAMPLES).resampled(values, 0)
    assert found.shape == (3, SAMPLES)
    np.testing.assert_allclose(found, 9.81, rtol=1e-5)


def test_only_the_ends_of_a_window_without_margin_are_approximate():
    resampler = resampler_for(48_000.0, 12_000.0, SAMPLES)
    values = np.sin(2 * np.pi * 500 * np.arange(4 * SAMPLES) / 48_000).astype(np.float32)
    expected = np.sin(2 * np.pi * 500 * np.arange(SAMPLES) / 12_000)
    error = np.abs(resampler.resampled(values[None], 0)[0] - expected)
    inside = resampler.margin // 4 + 1
    assert error[inside:-inside].max() < 1.5e-4
    assert error.max() < 0.5


def test_rates_without_a_small_ratio_move_a_reading_by_half_a_reading_at_most():
    for rate_in_hz in (12_003.7, 12_011.0, 25_613.3, 47_999.0):
        step = resampler_for(rate_in_hz, 12_000.0, SAMPLES).step
        assert abs(float(step) - rate_in_hz / 12_000.0) * SAMPLES <= 1.0
        assert step.denominator <= SAMPLES


def test_window_shorter_than_the_filter_gives_numbers_all_the_same():
    values = np.random.default_rng(0).normal(size=(1, 3)).astype(np.float32)
    found = Resampler(24_000.0, 12_000.0, 2).resampled(values, 0)
    assert found.shape == (1, 2)
    assert np.isfinite(found).all()


def test_input_is_left_as_it_was():
    values = np.random.default_rng(0).normal(size=(2, 9000)).astype(np.float32)
    before = values.copy()
    resampler_for(48_000.0, 12_000.0, SAMPLES).resampled(values, 3)
    np.testing.assert_array_equal(values, before)
