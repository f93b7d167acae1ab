"""A stream's stamps against our clock: jitter, drift, a clock that is set back."""

import random

from device_agents.streams.stream_clock import StreamClock

MS = 1_000_000
START = 5_000_000 * MS  # when the stream's clock began, by ours


def test_late_arrival_does_not_move_the_time_at_which_a_frame_was_taken():
    clock, draw, errors = StreamClock(), random.Random(7), []
    for n in range(500):
        stream_ns = n * 20 * MS
        delay = 3 * MS + (draw.expovariate(1 / (8 * MS)) if n % 3 else 0)
        taken = clock.see(stream_ns, START + stream_ns + round(delay))
        errors.append((taken - START - stream_ns) / MS)
    assert max(abs(error - 3) for error in errors[1:]) < 0.01  # the shortest transport stays


def test_first_frame_that_comes_late_is_corrected_by_the_next_in_time():
    clock = StreamClock()
    assert clock.see(0, START + 200 * MS) == START + 200 * MS
    assert clock.see(20 * MS, START + 22 * MS) == START + 22 * MS


def test_drift_of_two_clocks_is_followed():
    worst = 0.0
    for ppm in (100, -100):
        clock = StreamClock()
        for n in range(6000):  # two minutes
            true_ns = START + n * 20 * MS
            taken = clock.see(round(n * 20 * MS * (1 + ppm * 1e-6)), true_ns + 2 * MS)
            worst = max(worst, abs(taken - true_ns - 2 * MS) / MS)
    assert 0.5 < worst <= 1.01  # 100 ppm over the ten seconds that are looked back on


def test_clock_that_is_set_back_or_stands_still_starts_anew():
    clock = StreamClock()
    clock.see(900 * MS, START)
    assert clock.see(0, START + 20 * MS) == START + 20 * MS
    assert clock.see(0, START + 40 * MS) == START + 40 * MS


def test_stream_that_runs_ahead_of_time_is_stamped_as_it_comes():
    clock = StreamClock()
    for n in range(100):  # a file read as fast as it can be
        assert clock.see(n * 40 * MS, START + n * MS) == START + n * MS
