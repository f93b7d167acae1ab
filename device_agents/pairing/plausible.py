"""Readings that no sensor gives by itself: seen here, before the model sees them.

Four kinds, each with its counter and the rule that names it:

    not_finite_window  a reading is NaN or infinite
    repeated_window    a channel gives, reading by reading, what it gave the part before
    stuck_window       a channel stands still, all through the window or for a stretch of it
    clipped_window     readings pile up at an extreme (see `edge.readings.rail_share`)

What is merely unlike the bundle's reference is drift (`drift`, beside this), and is judged.
A channel that stands still or clips by nature says so in the reference, which was made of normal
parts; without a reference only what is plain by itself counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.readings import STUCK_READINGS, rail_share, run_lengths, stuck_from
from edge.reference import ChannelReference, Reference

_BEYOND_NORMAL = 2.0  # times what nine of ten normal windows stay under
_PLAIN = 4.0  # without a reference: so many times the second longest stretch


@dataclass(frozen=True)
class Implausible:
    """Why a window must not be judged. `kind` ends the counter's name; `reason` is for people."""

    kind: str
    reason: str


class Plausibility:
    """Looks at each window before it is judged; keeps the last one of each source.

    One object serves all sources of a station, and one thread asks it.
    """

    def __init__(self, reference: Reference | None = None) -> None:
        channels = () if reference is None else reference.channels
        self._normal = {channel.name: channel for channel in channels}
        self._last: dict[str, list[NDArray[np.float32]]] = {}

    def fault_of(
        self, names: Sequence[str], readings: Sequence[NDArray[np.float32]], source: str
    ) -> Implausible | None:
        """Return what is wrong with the channels' readings [T] each, or None."""
        fault = not_finite(names, readings)
        if fault is not None:
            return fault
        last = self._last.get(source)
        # A copy: a sensor may well write its next window into the same memory.
        self._last[source] = [values_T.copy() for values_T in readings]
        if last is not None:
            for name, values_T, before_T in zip(names, readings, last, strict=False):
                if _repeats(values_T, before_T):
                    text = f"{name} gives the same {len(values_T)} readings as for the part before"
                    return Implausible("repeated_window", text)
        for name, values_T in zip(names, readings, strict=True):
            fault = _fault_of_channel(name, values_T, self._normal.get(name))
            if fault is not None:
                return fault
        return None


def not_finite(names: Sequence[str], readings: Sequence[NDArray[np.float32]]) -> Implausible | None:
    """Name the channels with NaN or infinite readings, and how many there are."""
    bad = {
        name: count
        for name, values_T in zip(names, readings, strict=True)
        if (count := len(values_T) - int(np.count_nonzero(np.isfinite(values_T))))
    }
    if not bad:
        return None
    size = sum(len(values_T) for values_T in readings)
    channels = ", ".join(bad)
    return Implausible(
        "not_finite_window", f"{sum(bad.values())} NaN or infinite of {size} readings ({channels})"
    )


def _repeats(values_T: NDArray[np.float32], before_T: NDArray[np.float32]) -> bool:
    """Tell whether a channel that varies gives exactly the readings of the part before."""
    if len(values_T) != len(before_T) or not np.array_equal(values_T, before_T):
        return False
    # A channel that hardly moves may well give the same few values again.
    return int(np.count_nonzero(values_T[1:] != values_T[:-1])) >= STUCK_READINGS


def _fault_of_channel(
    name: str, values_T: NDArray[np.float32], normal: ChannelReference | None
) -> Implausible | None:
    stuck = _stuck_readings(values_T, normal)
    if stuck:
        text = f"{name} unchanged for {stuck} of {len(values_T)} readings"
        return Implausible("stuck_window", text)
    share = max(rail_share(values_T))
    if share and share > _BEYOND_NORMAL * (normal.at_rail if normal else 0.0):
        text = f"{name} has {share:.1%} of {len(values_T)} readings at an extreme, as if clipped"
        return Implausible("clipped_window", text)
    return None


def _stuck_readings(values_T: NDArray[np.float32], normal: ChannelReference | None) -> int:
    """Return the length of a stretch that stands still and should not, else 0."""
    runs = run_lengths(values_T)
    longest, readings = int(runs.max()), len(values_T)
    if longest < min(readings, stuck_from(readings)):
        return 0
    if normal is not None:
        return longest if longest > _BEYOND_NORMAL * normal.longest_run * readings else 0
    if longest == readings:
        return longest
    # Without a reference: a channel that moves slowly has many long stretches, and one that
    # rests between two cuts rests at 0.
    at = int(runs[: int(runs.argmax())].sum())
    second = int(np.partition(runs, -2)[-2])
    return longest if longest >= _PLAIN * second and values_T[at] != 0.0 else 0
