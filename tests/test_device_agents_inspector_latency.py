"""Latencies over the last minute: near the truth, and never a growing list."""

import random

import pytest

from device_agents.inspector.latency import LastMinute


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def test_percentiles_are_at_most_a_bucket_above_the_truth():
    minute, draw = LastMinute(Clock()), random.Random(1)
    values = sorted(draw.lognormvariate(0.5, 1.0) for _ in range(20_000))
    for value in draw.sample(values, len(values)):
        minute.take(value)
    found = minute.percentiles()
    for share, told in ((0.5, found.p50_ms), (0.9, found.p90_ms), (0.99, found.p99_ms)):
        true = values[int(share * len(values)) - 1]
        assert true <= told * 1.001
        assert told <= true * 1.06
    assert found.max_ms == pytest.approx(values[-1], abs=1e-3)


def test_what_is_older_than_a_minute_is_forgotten():
    clock = Clock()
    minute = LastMinute(clock)
    assert minute.percentiles() is None
    minute.take(500.0)
    clock.now_s += 30
    minute.take(1.0)
    assert minute.percentiles().max_ms == 500.0
    clock.now_s += 31
    assert minute.percentiles().max_ms == 1.0
    clock.now_s += 3_600
    assert minute.percentiles() is None


def test_parts_are_counted_in_whole_seconds():
    clock = Clock()
    minute = LastMinute(clock)
    for _ in range(30):
        for _ in range(10):
            minute.take(1.0)
        clock.now_s += 1
    assert (minute.parts_in(1), minute.parts_in(10), minute.parts_in(59)) == (10, 100, 300)
    minute.take(1.0)
    assert minute.parts_in(10) == 100, "the present second is not whole"


@pytest.mark.parametrize("latency_ms", [0.0, 1e-9, -1.0, 0.01, 1e5, 1e9])
def test_latencies_off_the_scale_are_taken(latency_ms):
    minute = LastMinute(Clock())
    minute.take(latency_ms)
    assert minute.percentiles().p50_ms <= max(latency_ms, 0.01)
