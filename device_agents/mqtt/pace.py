"""How fast the publisher may go: the wait between two connections, and the rate of messages."""

from __future__ import annotations

_BACKOFF_FIRST_S, BACKOFF_LAST_S = 0.5, 30.0
PATIENT = 16  # as good as many failures: the longest wait
_BURST_S = 0.1  # messages of so long may leave at once


def backoff_s(failures: int, draw: float) -> float:
    """Seconds to wait after so many failures in a row; `draw` in 0..1 spreads the stations.

    Doubles from half a second to half a minute, then half of it is left to chance: five hundred
    stations that lost one broker must not all come back in the same instant.
    """
    longest = min(BACKOFF_LAST_S, _BACKOFF_FIRST_S * 2.0 ** min(failures, PATIENT))
    return longest * (0.5 + 0.5 * draw)


class TokenBucket:
    """A rate limit: tokens come in at `per_second`, and each message takes one.

    What is not used is kept for a tenth of a second, so that a slow turn of the loop costs no
    rate, and a pause buys no flood. Time is given from outside (monotonic seconds).
    """

    def __init__(self, per_second: float, now_s: float) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second * _BURST_S)
        self._tokens = 1.0
        self._at_s = now_s

    def room(self, now_s: float) -> int:
        """How many messages may leave now."""
        gained = max(0.0, now_s - self._at_s) * self._per_second
        self._tokens = min(self._most, self._tokens + gained)
        self._at_s = max(self._at_s, now_s)
        return int(self._tokens)

    def take(self, count: int) -> None:
        """Note that so many left. Never more than `room` said."""
        assert count <= self._tokens
        self._tokens -= count
