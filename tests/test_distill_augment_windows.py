"""Mild changes to a sensor window, and made faults: each does what it says, and no more."""

import numpy as np
import pytest
from small_augmentations import FAULTS, NOTHING, READINGS, TINY, only

from distill.augment.made_faults import broken_window
from distill.augment.windows import varied_window
from distill.features.spectral import MIN_READINGS
from edge.errors import InputError

TIME = np.arange(600)
WINDOW = np.stack(
    [3.0 + np.sin(TIME / 9.0), -40.0 + 5.0 * np.cos(TIME / 4.0) + 0.01 * TIME]
).astype(np.float32)
NOISE = np.random.default_rng(0).normal(2.0, 0.5, (2, 600)).astype(np.float32)


def varied(window, recipe, seed=1):
    return varied_window(window, recipe, np.random.default_rng(seed))


def test_with_every_amount_at_zero_the_original_comes_back_byte_for_byte():
    for window in (WINDOW, NOISE):
        assert varied(window, NOTHING).tobytes() == window.tobytes()
        same = broken_window(window, NOTHING, np.random.default_rng(0))
        assert same.tobytes() == window.tobytes()


@pytest.mark.parametrize("key", READINGS)
def test_each_change_alone_changes_the_window_and_nothing_of_its_form(key):
    before, changed = WINDOW.copy(), False
    for seed in range(4):
        made = varied(WINDOW, only(**{key: READINGS[key]}), seed)
        assert (made.shape, made.dtype) == (WINDOW.shape, np.float32)
        assert np.isfinite(made).all()
        changed |= bool((made != WINDOW).any())
        again = varied(WINDOW, only(**{key: READINGS[key]}), seed)
        assert made.tobytes() == again.tobytes()
    assert changed
    assert (before == WINDOW).all(), "the original is not written on"


@pytest.mark.parametrize("key", [*READINGS, "all"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("readings", [MIN_READINGS, MIN_READINGS + 1, 257])
def test_the_shortest_windows_and_still_ones_are_taken(key, channels, readings):
    recipe = only(**(READINGS if key == "all" else {key: READINGS[key]}))
    moving = np.random.default_rng(0).normal(size=(channels, readings)).astype(np.float32)
    for seed in range(10):
        assert np.isfinite(varied(moving, recipe, seed)).all()
        still = np.full((channels, readings), 7.0, np.float32)
        np.testing.assert_allclose(varied(still, recipe, seed), still, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_readings_that_are_not_finite_are_refused_with_a_way_out(bad):
    window = WINDOW.copy()
    window[1, 5:8] = bad
    for change in (varied_window, broken_window):
        with pytest.raises(InputError, match="3 NaN or infinite of 1200"):
            change(window, TINY, np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(8))
def test_gains_stretch_about_the_level_all_alike_or_each_by_itself(seed):
    together = varied(WINDOW, only(sensor_gain=0.3), seed)
    each = varied(WINDOW, only(sensor_channel_gain=0.3), seed)
    for made in (together, each):
        np.testing.assert_allclose(made.mean(1), WINDOW.mean(1), atol=1e-4)
    gains = together.std(1) / WINDOW.std(1)
    assert gains[0] == pytest.approx(gains[1], rel=1e-4)
    gains = each.std(1) / WINDOW.std(1)
    assert abs(gains[0] / gains[1] - 1.0) > 0.005


@pytest.mark.parametrize("seed", range(8))
def test_a_shifted_clock_makes_no_jump_that_the_machine_did_not_make(seed):
    ramp = np.linspace(0.0, 100.0, 200, dtype=np.float32)[None]
    made = varied(ramp, only(sensor_shift=0.2), seed)
    assert np.abs(np.diff(made)).max() <= np.abs(np.diff(ramp)).max() * 1.001
    shift = int(np.abs(np.round((made - ramp) * 199 / 100)).max())
    assert shift <= 0.2 * 200 + 0.5
    # What the recording holds is kept as it is, reading by reading, only elsewhere.
    assert set(made.ravel().tolist()) <= set(ramp.ravel().tolist())


def test_all_channels_move_in_time_together():
    twins = np.repeat(NOISE[:1], 2, axis=0)
    for seed in range(5):
        made = varied(twins, only(sensor_shift=0.2, sensor_warp=0.1), seed)
        assert (made[0] == made[1]).all()


@pytest.mark.parametrize("seed", range(8))
def test_a_warp_keeps_the_ends_and_the_speed_within_what_the_recipe_says(seed):
    clock = np.arange(400, dtype=np.float32)[None]
    made = varied(clock, only(sensor_warp=0.2), seed)[0]
    # Mirrored at its ends, a ramp has a corner there, which the spline rounds off.
    assert made[0] == pytest.approx(0.0, abs=0.3)
    assert made[-1] == pytest.approx(399.0, abs=0.3)
    speed = np.diff(made)[4:-4]
    assert 0.79 <= speed.min() <= speed.max() <= 1.21
    assert speed.std() > 0.005


@pytest.mark.parametrize("seed", range(8))
def test_a_silenced_band_is_silent_and_the_rest_of_the_spectrum_stays(seed):
    made = varied(NOISE, only(sensor_mask=0.4), seed)
    before, after = (np.abs(np.fft.rfft(window)) for window in (NOISE, made))
    silent = after < 1e-3
    assert (silent[0] == silent[1]).all()
    assert silent[0].sum() <= 0.4 * 300 + 1
    assert np.diff(np.flatnonzero(silent[0])).tolist() == [1] * (silent[0].sum() - 1), "one band"
    np.testing.assert_allclose(after[~silent], before[~silent], rtol=1e-3)
    np.testing.assert_allclose(made.mean(1), NOISE.mean(1), rtol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_noise_is_in_proportion_to_each_channels_own_deviation(seed):
    loud = NOISE * np.float32([[1.0], [1000.0]])
    added = varied(loud, only(sensor_noise=0.3), seed) - loud
    assert added.std(1)[1] / added.std(1)[0] == pytest.approx(1000.0, rel=0.15)
    assert (added.std(1) <= 0.33 * loud.std(1)).all()


@pytest.mark.parametrize("seed", range(8))
def test_an_open_contact_leaves_the_level_and_a_faint_rest_in_one_channel(seed):
    made = varied(NOISE, only(sensor_gap=0.4), seed)
    lost = made != NOISE
    assert lost.any(1).sum() <= 1
    assert lost.sum() <= 0.4 * 600 + 1
    places = np.flatnonzero(lost.any(0))
    if len(places) > 2:
        assert places[-1] - places[0] + 1 == len(places), "one stretch"
        assert 0.0 < made[lost].std() < 0.02 * NOISE.std()


def test_one_channel_of_several_may_be_lost_but_never_the_only_one():
    chosen = set()
    for seed in range(10):
        made = varied(NOISE, only(sensor_drop=1.0), seed)
        weak = made.std(1) < 0.02 * NOISE.std(1)
        assert weak.sum() == 1
        assert made.std(1).min() > 0.0, "it does not stand still: a device would refuse that"
        chosen.add(int(weak.argmax()))
        alone = varied(NOISE[:1], only(sensor_drop=1.0), seed)
        assert (alone == NOISE[:1]).all()
    assert chosen == {0, 1}


@pytest.mark.parametrize("seed", range(12))
def test_a_made_fault_stands_out_and_grows_with_its_strength(seed):
    made = broken_window(NOISE, only(**FAULTS), np.random.default_rng(seed))
    assert (made.shape, made.dtype) == (NOISE.shape, np.float32)
    assert np.isfinite(made).all()
    assert np.abs(made - NOISE).max() > 0.2
    twice = broken_window(NOISE, only(sensor_fault=2.0), np.random.default_rng(seed))
    np.testing.assert_allclose(twice - NOISE, 2.0 * (made - NOISE), atol=1e-4)


@pytest.mark.parametrize("readings", [MIN_READINGS, 64])
def test_a_window_without_any_movement_can_be_broken(readings):
    still = np.zeros((3, readings), np.float32)
    for seed in range(20):
        assert np.isfinite(broken_window(still, TINY, np.random.default_rng(seed))).all()
