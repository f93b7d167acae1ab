"""Two simulated lines that differ as lines of one plant do: other materials, another machine.

The second is `edge simulate` with other finishes and another spindle: each finish has another
photograph, colour and contrast, and other levels of both channels; the spindle turns faster, its
gear has other teeth and its housing rings elsewhere. What counts as a defect is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from edge.recording.format import Recording
from edge.simulate import line, textures, waveform
from edge.simulate.line import LineOrder, simulate
from edge.simulate.textures import FINISHES, Sound

SIZE = (320, 240)
_SOFT, _HARD = Sound(vibration_g=0.18, current_a=1.6), Sound(vibration_g=0.50, current_a=2.7)
_FINISHES = (
    replace(
        FINISHES[0],
        texture_file="gravel.png",
        colour=(182.0, 152.0, 92.0),
        contrast=0.07,
        sound=_SOFT,
    ),
    replace(
        FINISHES[1],
        texture_file="grass.png",
        colour=(94.0, 98.0, 108.0),
        contrast=0.12,
        sound=_SOFT,
    ),
    replace(
        FINISHES[2],
        texture_file="brick.png",
        colour=(168.0, 112.0, 84.0),
        contrast=0.10,
        sound=_HARD,
    ),
)


def first_line(out: Path, parts: int, *, seed: int = 0) -> Recording:
    """Simulate the line that a student is distilled on; `out` is made."""
    out.mkdir(parents=True)
    return simulate(LineOrder(parts=parts, seed=seed, size=SIZE), out)


def other_line(out: Path, parts: int, *, seed: int = 100) -> Recording:
    """Simulate the line that it is adapted to; `out` is made."""
    with _other_machine():
        return first_line(out, parts, seed=seed)


@contextmanager
def _other_machine() -> Iterator[None]:
    """The simulator's constants are another line's meanwhile."""
    with ExitStack() as changed:
        for module, values in (
            (textures, {"FINISHES": _FINISHES}),
            (line, {"FINISHES": _FINISHES, "SOFT": _SOFT, "HARD": _HARD}),
            (waveform, {"SPINDLE_HZ": 41.0, "TEETH": 17, "RESONANCE_HZ": 2300.0}),
        ):
            changed.enter_context(patch.multiple(module, **values))
        yield
