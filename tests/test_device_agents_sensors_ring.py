"""The sensor ring as a structure: what is cut, what is missing, and what is said of it."""

import threading
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from device_agents.sensors.ring import GAP_NS, SensorRing
from edge.sample import Channel

RATE = 1000.0  # a reading per millisecond
MS = 1_000_000
CHANNELS = (Channel("a", "g", RATE), Channel("b", "N", RATE))


def numbered(first, count):
    """Readings whose value is their number; the second channel shows it negative."""
    numbers = np.arange(first, first + count, dtype=np.float32)
    return np.stack([numbers, -numbers], axis=1)


def filled(blocks, *, seconds=1.0, size=10):
    ring = SensorRing(CHANNELS, seconds)
    for block in range(blocks):
        ring.write(numbered(block * size, size), block * size * MS)
    return ring


def test_window_lies_around_the_moment_with_its_channels_in_order():
    reading = filled(20).around(100 * MS, 8)
    assert reading.window.values[0].tolist() == list(range(96, 104))
    assert (reading.window.values[1] == -reading.window.values[0]).all()
    assert reading.window.captured_at_ns == 100 * MS
    assert reading.window.channels == CHANNELS


def test_moment_between_two_readings_is_met_within_half_a_reading():
    for moment_ns in range(100 * MS, 102 * MS, 100_000):
        window = filled(20).around(moment_ns, 8).window
        assert abs(window.captured_at_ns - moment_ns) <= MS / 2


def test_odd_number_of_readings_has_its_middle_reading_at_the_moment():
    window = filled(20).around(round(100.5 * MS), 7).window
    assert window.values[0].tolist() == list(range(97, 104))
    assert window.captured_at_ns == round(100.5 * MS)


def test_ring_that_went_round_many_times_gives_the_newest_whole():
    ring = filled(1234, seconds=0.1)
    window = ring.around((12340 - 50) * MS, 100).window
    assert window.values[0].tolist() == list(range(12240, 12340))


def test_window_is_a_copy_that_later_readings_do_not_change():
    ring = filled(20, seconds=0.2)
    window = ring.around(100 * MS, 8).window
    before = window.values.copy()
    for block in range(20, 60):
        ring.write(numbered(block * 10, 10), block * 10 * MS)
    assert (window.values == before).all()


@pytest.mark.parametrize(
    ("moment_ms", "kind", "words"),
    [
        (198, "stale_window", "last 2.0 ms of the window's readings have not come"),
        (500, "stale_window", "have not come"),
        (2, "window_gone", "first 2.0 ms"),
        (-500, "window_gone", "not there"),
    ],
)
def test_window_that_is_not_whole_is_refused_with_what_is_missing(moment_ms, kind, words):
    reading = filled(20).around(moment_ms * MS, 8)
    assert reading.window is None
    assert reading.fault_kind == kind
    assert words in reading.fault


def test_overwritten_readings_are_gone():
    reading = filled(50, seconds=0.1).around(100 * MS, 8)
    assert (reading.window, reading.fault_kind) == (None, "window_gone")


def test_ring_without_readings_says_so():
    ring = SensorRing(CHANNELS, 1.0)
    assert ring.end_ns is None
    assert "no sensor reading has come yet" in ring.around(0, 8).fault


def test_window_over_a_dropout_is_refused_and_the_ones_beside_it_are_not():
    ring = filled(10)
    ring.write(numbered(100, 100), 140 * MS)  # 40 ms are missing after the first 100
    assert (ring.take_gaps(), ring.take_gaps()) == (1, 0)
    for moment_ms in (97, 100, 101, 120, 139, 140, 143):
        reading = ring.around(moment_ms * MS, 8)
        assert reading.fault_kind == "window_gap", moment_ms
        assert "40.0 ms of sensor readings are missing" in reading.fault or (
            "in a dropout" in reading.fault and 105 < moment_ms < 140
        )
    assert ring.around(96 * MS, 8).window.values[0, -1] == 99
    after = ring.around(144 * MS, 8).window
    assert after.values[0].tolist() == list(range(100, 108))
    assert after.captured_at_ns == 144 * MS


def test_jitter_of_block_times_is_no_dropout():
    ring = SensorRing(CHANNELS, 1.0)
    for block in range(50):
        ring.write(numbered(block * 10, 10), block * 10 * MS + (-1) ** block * GAP_NS // 3)
    assert ring.take_gaps() == 0
    assert ring.around(250 * MS, 100).window is not None


def test_slow_drift_of_the_sensors_clock_is_followed_and_no_dropout():
    ring, at_ns = SensorRing(CHANNELS, 2.0), 0
    for block in range(3000):
        ring.write(numbered(block * 10, 10), at_ns)
        at_ns += 10 * MS + 1_000  # 100 ppm slow
    assert ring.take_gaps() == 0
    newest = ring.around(at_ns - 50 * MS, 8).window
    assert abs(newest.captured_at_ns - (at_ns - 50 * MS)) <= MS
    # After 30 s the sensor is 3 ms behind; by its count alone the window would be 3 readings off.
    assert abs(newest.values[0, 4] - 29_950) <= 1


def test_clock_that_is_set_back_forgets_what_was_there():
    ring = filled(20)
    ring.write(numbered(500, 100), 20 * MS)
    assert ring.around(70 * MS, 8).window.values[0].tolist() == list(range(546, 554))
    assert ring.around(20 * MS, 8).fault_kind == "window_gone"


def test_waiting_reader_wakes_when_the_readings_come():
    ring = filled(10)
    writer = threading.Timer(0.05, lambda: ring.write(numbered(100, 50), 100 * MS))
    writer.start()
    assert ring.wait_for(150 * MS, 5.0)
    assert ring.around(140 * MS, 8).window is not None
    assert not ring.wait_for(10_000 * MS, 0.01)


def test_block_longer_than_the_ring_leaves_its_end():
    ring = SensorRing(CHANNELS, 0.05)
    ring.write(numbered(0, 1000), 0)
    assert ring.around(975 * MS, 50).window.values[0].tolist() == list(range(950, 1000))
    ring.write(numbered(0, 0), 5)  # an empty block is nothing


def test_reader_and_writer_at_once_never_meet_half_a_block():
    ring, stop = SensorRing(CHANNELS, 0.2), threading.Event()

    def write():
        block = 0
        while not stop.is_set():
            ring.write(numbered(block * 10, 10), block * 10 * MS)
            block += 1

    writer = threading.Thread(target=write)
    writer.start()
    cut = 0
    deadline_s = time.monotonic() + 20
    while cut < 200 and time.monotonic() < deadline_s:
        window = ring.around((ring.end_ns or 0) - 20 * MS, 32).window
        if window is not None:
            assert (np.diff(window.values[0]) == 1).all()
            assert (window.values[1] == -window.values[0]).all()
            cut += 1
    stop.set()
    writer.join()
    assert cut == 200


@settings(max_examples=200, deadline=None)
@example(blocks=[(1, 6), (1, 6), (1, 0)], room=3, moment_ms=8, samples=1)
@example(blocks=[(1, 0), (5, 30)], room=50, moment_ms=20, samples=1)
@given(
    blocks=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30)), min_size=1, max_size=30),
    room=st.integers(1, 200),
    moment_ms=st.integers(-20, 900),
    samples=st.integers(1, 60),
)
def test_whatever_comes_a_window_is_what_was_written_or_a_named_fault(
    blocks, room, moment_ms, samples
):
    ring = SensorRing(CHANNELS, room / RATE)
    truth, at = {}, 0  # by millisecond
    for size, gap in blocks:
        at += gap if gap * MS > GAP_NS else 0
        ring.write(numbered(at, size), at * MS)
        truth.update({at + n: at + n for n in range(size)})
        at += size
    assert ring._values.shape == (2, room), "memory is fixed"
    reading = ring.around(moment_ms * MS, samples)
    first = moment_ms - samples // 2
    if reading.window is not None:
        # Each value is its own millisecond, so a window is right where it is an unbroken count.
        values = reading.window.values[0]
        assert all(value in truth for value in values)
        assert (np.diff(values) == 1).all()
        assert abs(values[0] - first) <= 1
    else:
        assert reading.fault_kind in ("stale_window", "window_gone", "window_gap")
        whole = all(first + n in truth for n in range(-1, samples + 1))
        assert not (whole and first - 1 >= at - room), reading.fault
