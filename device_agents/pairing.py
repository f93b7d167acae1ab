"""Which sensor window belongs to a frame: pure rules, by time, with a stated tolerance."""

from __future__ import annotations

from dataclasses import dataclass

from device_agents.cameras.recording import Shot
from device_agents.sensors.recording import Reading
from edge.errors import InputError
from edge.model_spec import ModelSpec
from edge.sample import Sample


@dataclass(frozen=True)
class Unpaired:
    """A shot that no rule may judge. `kind` is the counter's name, `reason` is for people."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Paired:
    """A sample for the model. `remark` says what is missing where the image is judged alone."""

    sample: Sample
    remark: str = ""


def pair(shot: Shot, reading: Reading, spec: ModelSpec, tolerance_ms: float) -> Paired | Unpaired:
    """Form the sample, or say by name why there is none.

    A model without a sensor takes the frame alone. A model with one takes the frame alone only
    where its rule has a threshold of its own for that (`image_only`), never on the threshold that
    was set for both together. An unreadable or stale window is not held against the next frame.
    """
    if shot.frame is None:
        return Unpaired("invalid_frame_unreadable", shot.fault)
    if spec.sensor is None:
        return Paired(Sample(shot.sample_id, shot.frame, None, shot.part_id))
    if reading.fault:
        return Unpaired("invalid_window_unreadable", reading.fault)
    if reading.window is None:
        return _image_alone(shot, spec, "no_window", "no sensor window")
    apart_ms = abs(reading.window.captured_at_ns - shot.frame.captured_at_ns) / 1e6
    if apart_ms > tolerance_ms:
        why = f"the sensor window is {apart_ms:.1f} ms away, tolerance {tolerance_ms:.1f} ms"
        return _image_alone(shot, spec, "stale_window", why)
    return Paired(Sample(shot.sample_id, shot.frame, reading.window, shot.part_id))


def tolerance_for(period_ms: float, wanted_ms: float | None) -> float:
    """Return the tolerance in ms; None is a quarter of the part period.

    Half a period or more could pair a frame with its neighbour's window: InputError.
    """
    if wanted_ms is None:
        return period_ms / 4
    if wanted_ms < period_ms / 2:
        return wanted_ms
    raise InputError(
        where="source.tolerance_ms",
        expected=f"a tolerance below {period_ms / 2:.3g} ms, half the time between two parts",
        found=f"{wanted_ms:g} ms",
        do="Lower it, or leave it out for a quarter of the part period.",
    )


def _image_alone(shot: Shot, spec: ModelSpec, kind: str, why: str) -> Paired | Unpaired:
    assert shot.frame is not None
    if spec.rule is None or spec.rule.image_only is None:
        return Unpaired(f"invalid_{kind}", f"{why}, and the model has no threshold for image alone")
    sample = Sample(shot.sample_id, shot.frame, None, shot.part_id)
    return Paired(sample, f"judged by image alone: {why}")
