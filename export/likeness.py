"""How far do the calibration samples lie from those that the run was trained on?

INT8's ranges are those of the calibration samples. Where these are of another light, another
sensor or another part, the ranges are wrong for the line that the thresholds were set on, and the
parity check, which judges parts of the same recording, would not see it. So both recordings'
normal parts are described by the figures of a reference (a run keeps that of its own: see
`RunRecord.normals`), and the middles are compared in deviations of the training's: the embedding
alone is not enough, for a student that hardly looks at the image has an embedding that hardly
changes with it. Only the focus of frames of another size is left out: see `FrameReference`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from distill.evaluation.reference import normal_rows, reference_of
from edge.errors import InputError
from edge.recording.format import Recording, SampleRow
from edge.reference import ChannelReference, Reference, Spread
from edge.scorer import Scorer

REFUSED_BEYOND = 4.0  # deviations
_FOCUS = "focus"
_NAMED_FIGURES = 4

# A line that hardly varies would make any difference a large one: no deviation counts as less.
_LEAST_LEVEL = 0.03  # of full scale: brightness, and shares of black and white pixels
_LEAST_LOG = 0.15  # of focus, rms and peak, which are logarithms
_LEAST_SHARE = 0.05  # of a channel's span, for its level


@dataclass(frozen=True)
class Difference:
    """One figure of normal parts: its middle in both, and how many deviations lie between."""

    figure: str
    training: float
    calibration: float
    deviations: float

    def __str__(self) -> str:
        return f"{self.figure} {self.deviations:.1f}"


def described(scorer: Scorer, recording: Recording, rows: Sequence[SampleRow]) -> Reference:
    """Measure the normal ones among `rows` as the student sees them. InputError where none is."""
    reference = reference_of(scorer, recording, normal_rows(recording, rows))
    if reference is None:
        raise InputError(
            where=recording.folder,
            expected="normal parts, which calibration and training are compared by",
            found="none",
            do=f"Add parts labelled '{recording.normal_class}' to its train split.",
        )
    return reference


def differences_between(training: Reference, calibration: Reference) -> tuple[Difference, ...]:
    """Compare two descriptions by the same student; the largest difference first."""
    found = _differences(training, calibration)
    return tuple(sorted(found, key=lambda difference: -difference.deviations))


def deviations_text(differences: tuple[Difference, ...]) -> str:
    """Name the largest differences, and say where the focus is none of them."""
    text = ", ".join(map(str, differences[:_NAMED_FIGURES]))
    compared = any(one.figure == _FOCUS for one in differences)
    return text if compared else f"{text} ({_FOCUS} not compared: frames of another size)"


def refuse_unlike(differences: tuple[Difference, ...], calibration: Recording) -> None:
    """Raise InputError where a figure lies beyond `REFUSED_BEYOND` deviations."""
    beyond = [one for one in differences if one.deviations > REFUSED_BEYOND]
    if beyond:
        raise InputError(
            where=calibration.folder,
            expected="calibration samples like those the run was trained on (normal parts at most "
            f"{REFUSED_BEYOND:g} deviations apart)",
            found=", ".join(f"{one} deviations" for one in beyond[:3]),
            do="Calibrate on the run's own recording; or, if the line has changed for good, "
            "distil on a recording of how it is now, for its thresholds are stale, too.",
        )


def _differences(training: Reference, calibration: Reference) -> Iterator[Difference]:
    frame, other = training.frame, calibration.frame
    if all(map(frame.is_of_size, other.longest_side)):
        yield _between(_FOCUS, frame.focus, other.focus, _LEAST_LOG)
    yield _between("brightness", frame.level, other.level, _LEAST_LEVEL)
    yield _between("black pixels", frame.black, other.black, _LEAST_LEVEL)
    yield _between("white pixels", frame.white, other.white, _LEAST_LEVEL)
    for one, two in zip(training.channels, calibration.channels, strict=False):
        yield _between(f"{one.name} level", one.level, two.level, _LEAST_SHARE * _span(one))
        yield _between(f"{one.name} rms", one.rms, two.rms, _LEAST_LOG)
        yield _between(f"{one.name} peak", one.peak, two.peak, _LEAST_LOG)
    if training.embedding is None:
        return
    spread = training.embedding.distance
    typical = math.hypot(spread.middle, spread.deviation)
    if calibration.embedding is None:  # not one normal part passes
        yield Difference("embedding", 0.0, math.inf, math.inf)
        return
    apart = np.subtract(calibration.embedding.mean, training.embedding.mean)
    distance = float(np.linalg.norm(apart))
    yield Difference("embedding", 0.0, distance, distance / max(typical, 1e-9))


def _between(figure: str, training: Spread, calibration: Spread, least: float) -> Difference:
    apart = abs(calibration.middle - training.middle)
    deviations = apart / max(training.deviation, least, 1e-9)
    return Difference(figure, training.middle, calibration.middle, deviations)


def _span(channel: ChannelReference) -> float:
    return channel.high - channel.low
