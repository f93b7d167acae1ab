"""What one channel's readings show by themselves: how long they stand still, and clipping.

The survey of a recording, the bundle's reference and the device ask the same two questions, so
that "slow by nature" means the same on all sides.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

STUCK_SHARE = 0.05  # of a window: longer without any change counts as stuck
STUCK_READINGS = 16  # and at least so many, for short windows

CLIPPED_SHARE = 0.01  # of a window at one rail: from here on it may count as clipped
_CLIPPED_READINGS = 8  # and at least so many
_ANALOGUE_VALUES = 8  # a channel of fewer different values is a switch, and has no rails
_RAIL_BAND = 0.005  # of the range: the neighbourhood that a rail is compared with
_SAME = 1e-5  # of the range: readings this close to the extreme are the extreme, rounded
_PILE_UP = 10.0  # so many times its neighbourhood: see `rail_share`


def longest_run(values_T: NDArray[np.float32]) -> int:
    """Return the length of the longest stretch of equal readings."""
    return int(run_lengths(values_T).max())


def run_lengths(values_T: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the lengths of all stretches of equal readings, in order."""
    changes = np.flatnonzero(values_T[1:] != values_T[:-1]) + 1
    return np.diff(np.concatenate(([0], changes, [len(values_T)])))


def stuck_from(readings: int) -> int:
    """Return how many unchanged readings count as stuck in a window of `readings`."""
    return max(STUCK_READINGS, math.ceil(STUCK_SHARE * readings))


def rail_share(values_T: NDArray[np.float32]) -> tuple[float, float]:
    """Return the share of readings piled up at the lowest and at the highest value, else 0.

    A converter that is driven too far gives one value, its last, for everything beyond: readings
    pile up at the exact extreme, and thin out right beside it. Any signal spends some time at its
    extremes, and a coarse converter gathers it on one value; but then its neighbour gathers much
    of it too. A sine, the signal that dwells longest at its turning points, has on its top step q
    at most (acos(1-q)) / (acos(1-2q) - acos(1-q)) -> 1 / (sqrt(2) - 1) = 2.4 times what it has on
    the next one, and up to four times that for a few readings a turn. So a rail holds at least
    `CLIPPED_SHARE` of the window and `_PILE_UP` times as many readings as the neighbourhood
    beside it, which is a two-hundredth of the range wide, or the next two values that occur.

    What this rule passes over: fewer readings at a rail than that; a floor of exactly 0, which is
    what an idle channel reads; and channels of a few values only, such as switches.
    """
    low, high = float(values_T.min()), float(values_T.max())
    span = high - low
    least = max(_CLIPPED_READINGS, CLIPPED_SHARE * len(values_T))
    return (
        _piled_up(values_T, low, span, least),
        _piled_up(-values_T, -high, span, least),
    )


def _piled_up(values_T: NDArray[np.float32], low: float, span: float, least: float) -> float:
    """Return the share of readings at the floor `low`, where they pile up there."""
    if low == 0.0 or span == 0.0:
        return 0.0
    floor = low + _SAME * span
    piled = int(np.count_nonzero(values_T <= floor))
    if piled < least:  # nearly always: the rest is for the rare window
        return 0.0
    above = values_T[values_T > floor]
    values = np.unique(above)
    if len(values) < _ANALOGUE_VALUES:
        return 0.0
    edge = max(low + _RAIL_BAND * span, float(values[1]) + _SAME * span)
    beside = int(np.count_nonzero(above <= edge))
    return piled / len(values_T) if piled >= _PILE_UP * beside else 0.0
