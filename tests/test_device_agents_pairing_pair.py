"""Pairing: which window belongs to a frame, and what becomes of a frame without one."""

import numpy as np
import pytest
from small_station import CHANNELS, READINGS, SIZE, spec_of

from device_agents.pairing.pair import Paired, Unpaired, pair, tolerance_for
from device_agents.pairing.plausible import Plausibility
from device_agents.parts import Reading, Shot
from edge.errors import InputError
from edge.sample import Channel, Frame, Window

MS = 1_000_000
FRAME = Frame(np.zeros((SIZE, SIZE, 3), np.uint8), 1_000 * MS)
SHOT = Shot("p1", "part1", None, FRAME)


NOISE = np.random.default_rng(4).normal(size=(len(CHANNELS), 4096)).astype(np.float32)


def reading_at(ms: float, values=NOISE[:, :READINGS], channels=CHANNELS) -> Reading:
    return Reading(Window(values, channels, round(ms * MS)))


def at_rate(rate_hz: float) -> tuple[Channel, ...]:
    return tuple(Channel(channel.name, channel.unit, rate_hz) for channel in CHANNELS)


@pytest.mark.parametrize("ms", [995.0, 1_000.0, 1_005.0])
def test_window_within_the_tolerance_is_paired(ms):
    paired = pair(SHOT, reading_at(ms), spec_of(), 5.0)
    assert isinstance(paired, Paired)
    assert paired.sample.window is not None
    assert (paired.sample.sample_id, paired.sample.part_id) == ("p1", "part1")
    assert paired.remark == ""


@pytest.mark.parametrize(
    ("reading", "kind"),
    [
        (reading_at(1_005.1), "invalid_stale_window"),
        (reading_at(994.9), "invalid_stale_window"),
        (Reading(None), "invalid_no_window"),
    ],
)
def test_without_a_window_only_an_image_only_threshold_may_judge(reading, kind):
    unpaired = pair(SHOT, reading, spec_of(), 5.0)
    assert isinstance(unpaired, Unpaired)
    assert unpaired.kind == kind
    assert "no threshold for image alone" in unpaired.reason
    alone = pair(SHOT, reading, spec_of(image_only=True), 5.0)
    assert isinstance(alone, Paired)
    assert alone.sample.window is None
    assert alone.remark.startswith("judged by image alone")
    assert alone.kind == kind.replace("invalid", "image_only")


def test_unreadable_window_goes_the_way_of_a_missing_one():
    reading = Reading(None, "cut short")
    unpaired = pair(SHOT, reading, spec_of(), 5.0)
    assert unpaired.kind == "invalid_window_unreadable"
    assert unpaired.reason.startswith("cut short, and the model has no threshold")
    alone = pair(SHOT, reading, spec_of(image_only=True), 5.0)
    assert (alone.kind, alone.sample.window) == ("image_only_window_unreadable", None)
    assert alone.remark == "judged by image alone: cut short"


def test_frame_that_could_not_be_read_is_not_judged():
    shot = Shot("p1", "part1", None, None, "frame unreadable: truncated")
    unpaired = pair(shot, reading_at(1_000), spec_of(), 5.0)
    assert unpaired == Unpaired("invalid_frame_unreadable", "frame unreadable: truncated")


def test_model_without_a_sensor_needs_no_window():
    assert isinstance(pair(SHOT, Reading(None), spec_of(sensor=False), 5.0), Paired)


def test_longer_window_is_cut_around_the_frames_time():
    # 1600 Hz: 0.625 ms a reading. The window's middle lies 20 readings after the frame.
    paired = pair(SHOT, reading_at(1_012.5, NOISE[:, :132]), spec_of(), 5.0)
    assert isinstance(paired, Paired)
    np.testing.assert_array_equal(paired.sample.window.values, NOISE[:, 30:62])
    assert paired.sample.window.captured_at_ns == FRAME.captured_at_ns
    assert paired.sample.window.channels == CHANNELS


@pytest.mark.parametrize(
    ("ms", "first", "apart_ms"),
    [(1_030.0, 0, 1.875), (1_031.25, 0, 3.125), (970.0, 90, 1.875)],  # 45 readings: 28.125 ms
)
def test_cut_lies_as_near_to_the_frame_as_the_readings_reach(ms, first, apart_ms):
    paired = pair(SHOT, reading_at(ms, NOISE[:, :122]), spec_of(), 5.0)
    window = paired.sample.window
    np.testing.assert_array_equal(window.values, NOISE[:, first : first + READINGS])
    assert abs(window.captured_at_ns - FRAME.captured_at_ns) == apart_ms * MS


def test_readings_that_end_too_far_from_the_frame_are_stale():
    unpaired = pair(SHOT, reading_at(1_034.0, NOISE[:, :122]), spec_of(), 5.0)
    assert unpaired.kind == "invalid_stale_window"
    assert "5.9 ms away, tolerance 5.0 ms" in unpaired.reason


@pytest.mark.parametrize("readings", [0, 1, 31])
def test_too_few_readings_are_counted_as_a_short_window(readings):
    reading = reading_at(1_000, NOISE[:, :readings])
    assert pair(SHOT, reading, spec_of(), 5.0).kind == "invalid_short_window"
    alone = pair(SHOT, reading, spec_of(image_only=True), 5.0)
    assert (alone.kind, alone.sample.window) == ("image_only_short_window", None)
    assert f"[2, {readings}] at 1600 Hz is shorter" in alone.remark


@pytest.mark.parametrize("offset_ms", [0.0, 3.0, -4.5])
@pytest.mark.parametrize("rate_hz", [6400.0, 2000.0, 1500.0])
def test_window_of_another_rate_shows_the_same_signal_at_the_models_rate(rate_hz, offset_ms):
    def signal(ms):
        return np.sin(2 * np.pi * 0.170 * (ms - 1_000.0) + 0.4)

    readings = 1_000
    ms = 1_000 + offset_ms + (np.arange(readings) - (readings - 1) / 2) / rate_hz * 1e3
    values = np.stack([signal(ms), 2 * signal(ms)]).astype(np.float32)
    reading = reading_at(1_000 + offset_ms, values, at_rate(rate_hz))
    window = pair(SHOT, reading, spec_of(), 5.0).sample.window
    assert (window.channels, window.values.shape) == (CHANNELS, (2, READINGS))
    expected = signal(1_000 + (np.arange(READINGS) - (READINGS - 1) / 2) / 1.6)
    # The cut begins at a whole reading: at most half of one away, here at 170 Hz.
    nearest = 2 * np.pi * 170 / rate_hz / 2 + 1e-3
    assert np.abs(window.values[0] - expected).max() < nearest
    assert np.abs(window.values[1] - 2 * expected).max() < 2 * nearest


def test_channels_of_two_rates_are_each_brought_to_the_models():
    channels = (Channel("drive_end", "g", 1600.0), Channel("load", "N", 3200.0))
    paired = pair(SHOT, reading_at(1_000, NOISE[:, :512], channels), spec_of(), 5.0)
    window = paired.sample.window
    assert (window.channels, window.values.shape) == (CHANNELS, (2, READINGS))
    np.testing.assert_array_equal(window.values[0], NOISE[0, 240:272])


def test_slower_sensor_is_refused_because_the_missing_band_would_look_healthy():
    reading = reading_at(1_000, NOISE[:, :64], at_rate(800.0))
    unpaired = pair(SHOT, reading, spec_of(), 5.0)
    assert unpaired.kind == "invalid_slow_window"
    assert "drive_end at 800 Hz, where the model needs 1600 Hz" in unpaired.reason


@pytest.mark.parametrize(
    ("values", "channels"),
    [
        (NOISE[:, :32], (Channel("drive_end", "g", 1600.0), Channel("load", "kN", 1600.0))),
        (NOISE[:1, :32], CHANNELS[:1]),
        (NOISE[:1, :32], CHANNELS),
        (NOISE[0, :32], CHANNELS),
    ],
)
def test_window_of_other_channels_is_unfit_and_never_judged(values, channels):
    unpaired = pair(SHOT, reading_at(1_000, values, channels), spec_of(image_only=True), 5.0)
    assert isinstance(unpaired, Unpaired)
    assert unpaired.kind == "invalid_unfit"


def test_fault_of_a_sensor_is_counted_by_its_own_kind():
    reading = Reading(None, "the pipeline ended", "sensor_ended")
    assert pair(SHOT, reading, spec_of(), 5.0).kind == "invalid_sensor_ended"


def test_implausible_window_goes_the_way_of_a_missing_one():
    broken = NOISE[:, :READINGS].copy()
    broken[1, 7] = np.nan
    unpaired = pair(SHOT, reading_at(1_000, broken), spec_of(), 5.0)
    assert unpaired.kind == "invalid_not_finite_window"
    assert "1 NaN or infinite of 64 readings (load)" in unpaired.reason
    alone = pair(SHOT, reading_at(1_000, broken), spec_of(image_only=True), 5.0)
    assert (alone.kind, alone.sample.window) == ("image_only_not_finite_window", None)


def test_readings_beside_the_cut_are_not_held_against_it():
    values = NOISE[:, :132].copy()
    values[0, 0] = np.nan
    assert isinstance(pair(SHOT, reading_at(1_000, values), spec_of(), 5.0), Paired)
    # A resampled window is made of readings around the cut too.
    unpaired = pair(SHOT, reading_at(1_000, values, at_rate(3200.0)), spec_of(), 5.0)
    assert unpaired.kind == "invalid_not_finite_window"


def test_repeated_window_is_seen_source_by_source():
    seen = Plausibility()
    other = Shot("p1", "part1", None, FRAME, source="other")
    later = Shot("p2", "part2", None, FRAME)
    assert isinstance(pair(SHOT, reading_at(1_000), spec_of(), 5.0, seen), Paired)
    assert isinstance(pair(other, reading_at(1_000), spec_of(), 5.0, seen), Paired)
    unpaired = pair(later, reading_at(1_000), spec_of(), 5.0, seen)
    assert unpaired.kind == "invalid_repeated_window"
    fresh = reading_at(1_000, NOISE[:, 100:132])
    assert isinstance(pair(later, fresh, spec_of(), 5.0, seen), Paired)


def test_tolerance_must_not_reach_the_neighbour():
    assert tolerance_for(20.0, None) == 5.0
    assert tolerance_for(20.0, 9.0) == 9.0
    words = r"sources\.left\.tolerance_ms.*half the time between two parts"
    with pytest.raises(InputError, match=words):
        tolerance_for(20.0, 10.0, "sources.left")
