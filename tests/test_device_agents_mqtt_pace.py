"""How fast the publisher may go: bounded waits that spread, and a rate that holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agents.mqtt.pace import TokenBucket, backoff_s


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_backoff_is_bounded_and_spread(failures, draw):
    assert 0.25 <= backoff_s(failures, draw) <= 30.0
    assert backoff_s(failures, 0.0) <= backoff_s(failures + 1, 0.0)


@given(
    st.floats(0.1, 5_000),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1)), min_size=1, max_size=60),
)
def test_rate_is_never_exceeded_over_any_stretch(per_second, turns):
    """Whatever the loop's turns, no more leaves in a stretch than its seconds and one burst."""
    now_s, bucket = 100.0, TokenBucket(per_second, 100.0)
    left: list[tuple[float, int]] = []
    for pause_s, share in turns:
        now_s += pause_s
        count = int(bucket.room(now_s) * share)
        bucket.take(count)
        left.append((now_s, count))
    burst = max(1.0, per_second * 0.1)
    for begin in range(len(left)):
        stretch = left[begin:]
        seconds = stretch[-1][0] - stretch[0][0]
        assert sum(count for _, count in stretch) <= seconds * per_second + burst + 1e-6


def test_rate_is_reached_by_a_loop_that_turns_often():
    bucket, left = TokenBucket(30.0, 0.0), 0
    for turn in range(1, 1001):  # ten seconds in steps of 10 ms
        room = bucket.room(turn / 100)
        bucket.take(room)
        left += room
    assert left == pytest.approx(300, abs=2)


def test_clock_that_stands_still_or_steps_back_gives_no_room():
    bucket = TokenBucket(10.0, 50.0)
    bucket.take(bucket.room(50.0))
    assert [bucket.room(50.0), bucket.room(10.0), bucket.room(50.05)] == [0, 0, 0]
    assert bucket.room(50.1) == 1
