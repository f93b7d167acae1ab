"""One part on the simulated line: what it is, before it is drawn and listened to."""

from __future__ import annotations

from dataclasses import dataclass

from edge.simulate.textures import Finish, Sound

OK, SURFACE, BEARING, MISMATCH = "ok", "surface", "bearing", "mismatch"


@dataclass(frozen=True)
class Part:
    """A part, its defect, and the state of the line while it passes."""

    index: int
    label: str
    finish: Finish  # what the camera sees
    sound: Sound  # what the sensor hears: the finish's own, but for a mismatch
    shift: float  # 0 at the first part of the shift, 1 at the last: lamps age, bearings warm up
    window: str  # "whole", "absent" (no window was recorded) or "stuck" (a loose cable)

    @property
    def name(self) -> str:
        """The part's identity, which also names its files."""
        return f"part-{self.index + 1:05d}"
