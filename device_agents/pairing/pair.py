"""Which sensor readings belong to a frame: rules by time, with a stated tolerance.

The model's window is cut out of what the sensors gave, its middle at the frame's time, or as near
to it as the readings reach and the tolerance allows; then it is resampled to the model's rate
(`resample`). Readings that no sensor gives by itself are seen before (`plausible`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device_agents.pairing.plausible import Plausibility
from device_agents.pairing.resample import PASS_BAND, resampler_for
from device_agents.parts import Reading, Shot
from edge.errors import InputError
from edge.model_spec import ModelSpec, SensorInput
from edge.prepare import channels_text
from edge.sample import Channel, Sample, Window

# A slower sensor cannot show what the model listens to: the missing band would look healthy.
LEAST_RATE = PASS_BAND  # of the model's rate


@dataclass(frozen=True)
class Unpaired:
    """A shot that no rule may judge. `kind` is the counter's name, `reason` is for people."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Paired:
    """A sample for the model.

    Where the image is judged alone, `remark` says what is missing and `kind` is the counter's
    name; both are empty otherwise. `source` is the shot's.
    """

    sample: Sample
    remark: str = ""
    kind: str = ""
    source: str = "main"


@dataclass(frozen=True)
class _Missing:
    """Why there is no window for the model: the end of a counter's name, and words."""

    kind: str
    why: str


def pair(
    shot: Shot,
    reading: Reading,
    spec: ModelSpec,
    tolerance_ms: float,
    plausibility: Plausibility | None = None,
) -> Paired | Unpaired:
    """Form the sample, or say by name why there is none.

    A model without a sensor takes the frame alone. A model with one takes the frame alone only
    where its rule has a threshold of its own for that (`image_only`), never on the threshold that
    was set for both together. That holds for whatever is wrong with the window, but for channels
    that are not the model's. An unreadable or stale window is not held against the next frame.
    `plausibility` keeps what it saw of the part before; without it, each window is seen by itself.
    """
    if shot.frame is None:
        return Unpaired("invalid_frame_unreadable", shot.fault)
    if spec.sensor is None:
        return _paired(shot, None)
    if reading.fault:
        return _image_alone(shot, spec, _Missing(reading.fault_kind, reading.fault))
    misfit = "" if reading.window is None else _misfit_with(reading.window, spec.sensor)
    if misfit:
        return Unpaired("invalid_unfit", misfit)
    window = _window_for_model(
        reading.window, shot, spec.sensor, tolerance_ms, plausibility or Plausibility()
    )
    return (
        _image_alone(shot, spec, window) if isinstance(window, _Missing) else _paired(shot, window)
    )


def misfit_of(channels: tuple[Channel, ...], sensor: SensorInput) -> str:
    """Say why no window of these channels can be made into the model's; empty where one can.

    Names, units and their order must be the model's. The rate may be another: windows are
    resampled, unless it is too low for that (`too_slow`).
    """
    have = [(channel.name, channel.unit) for channel in channels]
    want = [(channel.name, channel.unit) for channel in sensor.channels]
    if have == want:
        return ""
    return f"expected {channels_text(sensor.channels)}, found {channels_text(channels)}"


def too_slow(channels: tuple[Channel, ...], sensor: SensorInput) -> str:
    """Name the first channel whose rate is below `LEAST_RATE` of the model's; empty: none is."""
    for have, want in zip(channels, sensor.channels, strict=True):
        if have.rate_hz < LEAST_RATE * want.rate_hz:
            return f"{have.name} at {have.rate_hz:g} Hz, where the model needs {want.rate_hz:g} Hz"
    return ""


def tolerance_for(period_ms: float, wanted_ms: float | None, table: str = "source") -> float:
    """Return the tolerance in ms; None is a quarter of the part period.

    Half a period or more could pair a frame with its neighbour's window: InputError, which names
    the source's `table` in the station file.
    """
    if wanted_ms is None:
        return period_ms / 4
    if wanted_ms < period_ms / 2:
        return wanted_ms
    raise InputError(
        where=f"{table}.tolerance_ms",
        expected=f"a tolerance below {period_ms / 2:.3g} ms, half the time between two parts",
        found=f"{wanted_ms:g} ms",
        do="Lower it, or leave it out for a quarter of the part period.",
    )


def _misfit_with(window: Window, sensor: SensorInput) -> str:
    misfit = misfit_of(window.channels, sensor)
    if not misfit and (window.values.ndim != 2 or len(window.values) != len(window.channels)):
        misfit = f"expected readings of {len(window.channels)} channels"
    return f"sensor window {list(window.values.shape)}: {misfit}" if misfit else ""


def _window_for_model(
    window: Window | None,
    shot: Shot,
    sensor: SensorInput,
    tolerance_ms: float,
    plausibility: Plausibility,
) -> Window | _Missing:
    """Cut, look and resample."""
    if window is None:
        return _Missing("no_window", "no sensor window")
    assert shot.frame is not None
    slack_ns = _slack_ns(window, sensor)
    if isinstance(slack_ns, _Missing):
        return slack_ns
    wanted_ns = shot.frame.captured_at_ns - window.captured_at_ns
    offset_ns = max(-slack_ns, min(slack_ns, wanted_ns))
    apart_ms = abs(wanted_ns - offset_ns) / 1e6
    if apart_ms > tolerance_ms:
        return _Missing(
            "stale_window",
            f"the sensor window is {apart_ms:.1f} ms away, tolerance {tolerance_ms:.1f} ms",
        )
    cuts = [
        _Cut(window.values[first:last], have, want, sensor.samples, offset_ns)
        for first, last, have, want in _alike(window.channels, sensor.channels)
    ]
    readings = [values_T for cut in cuts for values_T in cut.used_CT]
    names = [channel.name for channel in window.channels]
    fault = plausibility.fault_of(names, readings, shot.source)
    if fault is not None:
        return _Missing(fault.kind, f"implausible readings: {fault.reason}")
    parts = [cut.at_model_rate() for cut in cuts]
    values_CT = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return Window(values_CT, sensor.channels, window.captured_at_ns + offset_ns)


class _Cut:
    """The readings of channels of one rate that make the model's window of `samples`."""

    def __init__(
        self,
        values_CT: NDArray[np.float32],
        have_hz: float,
        want_hz: float,
        samples: int,
        offset_ns: int,
    ) -> None:
        self._resampler = None
        step, margin = 1.0, 0
        if have_hz != want_hz:
            self._resampler = resampler_for(have_hz, want_hz, samples)
            step, margin = float(self._resampler.step), self._resampler.margin
        readings = values_CT.shape[1]
        middle = (readings - 1) / 2 + offset_ns / 1e9 * have_hz
        start = round(middle - (samples - 1) / 2 * step)
        last = round(start + (samples - 1) * step) + 1
        # What the window's own readings do not reach is a matter of rounding, or is mirrored.
        first = max(0, start - margin)
        if self._resampler is None:
            first = min(first, readings - samples)
            last = first + samples
        self._start = start - first
        self.used_CT = values_CT[:, first : min(readings, last + margin)]

    def at_model_rate(self) -> NDArray[np.float32]:
        """Return the readings at the model's rate."""
        if self._resampler is None:
            return self.used_CT
        return self._resampler.resampled(self.used_CT, self._start)


def _slack_ns(window: Window, sensor: SensorInput) -> int | _Missing:
    """Return how far to either side the model's window can move within these readings."""
    slow = too_slow(window.channels, sensor)
    if slow:
        return _Missing("slow_window", slow)
    readings = window.values.shape[1]
    slack_ns: list[int] = []
    for have, want in zip(window.channels, sensor.channels, strict=True):
        over_s: float = readings / have.rate_hz - sensor.samples / want.rate_hz
        # At another rate a reading may be wanting: the ends are rounded to whole readings.
        rounding_s = 0.0 if have.rate_hz == want.rate_hz else 1.0 / want.rate_hz
        if over_s < -rounding_s:
            shape = list(window.values.shape)
            why = (
                f"the sensor window {shape} at {have.rate_hz:g} Hz is shorter than the model's "
                f"{sensor.samples} readings at {want.rate_hz:g} Hz"
            )
            return _Missing("short_window", why)
        slack_ns.append(max(0, round(over_s / 2 * 1e9)))
    return min(slack_ns)


def _alike(
    have: tuple[Channel, ...], want: tuple[Channel, ...]
) -> list[tuple[int, int, float, float]]:
    """Return runs of channels of the same rates: first, last, rate they have, rate wanted."""
    runs: list[tuple[int, int, float, float]] = []
    for index, (one, other) in enumerate(zip(have, want, strict=True)):
        if runs and runs[-1][2:] == (one.rate_hz, other.rate_hz):
            runs[-1] = (runs[-1][0], index + 1, *runs[-1][2:])
        else:
            runs.append((index, index + 1, one.rate_hz, other.rate_hz))
    return runs


def _paired(shot: Shot, window: Window | None, remark: str = "", kind: str = "") -> Paired:
    assert shot.frame is not None
    sample = Sample(shot.sample_id, shot.frame, window, shot.part_id)
    return Paired(sample, remark, kind, shot.source)


def _image_alone(shot: Shot, spec: ModelSpec, missing: _Missing) -> Paired | Unpaired:
    if spec.rule is None or spec.rule.image_only is None:
        reason = f"{missing.why}, and the model has no threshold for image alone"
        return Unpaired(f"invalid_{missing.kind}", reason)
    remark = f"judged by image alone: {missing.why}"
    return _paired(shot, None, remark, f"image_only_{missing.kind}")
