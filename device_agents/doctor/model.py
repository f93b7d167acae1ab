"""What the doctor looks at around the model: bundle, engine, and each source held against both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from device_agents.doctor.diagnosis import Finding, Patient, found_wrong
from device_agents.doctor.machine import holder_of
from device_agents.engine.load import engine_from_bundle
from device_agents.pairing.pair import Unpaired, pair
from device_agents.parts import PartSource, Reading, Shot
from device_agents.sources.choice import source_from
from device_agents.station import Source
from edge.bundle import Bundle, problems_of
from edge.errors import EdgeError
from edge.model_spec import ModelSpec

_RUNS = 20
_DARK, _BRIGHT = 5, 250  # grey levels: a mean beyond them shows a lens cap or an open shutter
_SHAPE_APART = 0.1  # of width over height; the model's own size is rounded to whole patches


def look_at_bundle(patient: Patient) -> Iterator[Finding]:
    """The bundle: there, and every byte as exported."""
    bundle = Bundle.open(Path(patient.station.model.bundle))
    problems = problems_of(bundle)
    if problems:
        said = f"{bundle.folder}: {'; '.join(problems[:3])}"
        do = "Copy the bundle again from where it was exported, then `edge verify` it."
        yield Finding("bundle", "fail", said, do)
        return
    patient.bundle = bundle
    spec = bundle.manifest.spec
    said = f"'{spec.name}', digest {bundle.digest[:12]}, {len(bundle.manifest.files)} files whole"
    yield Finding("bundle", "ok", said)


def look_at_reference(patient: Patient) -> Iterator[Finding]:
    """Whether the bundle says what good parts look like, so that drift can be seen."""
    if patient.bundle is None:
        yield Finding("drift", "skipped", "there is no whole bundle to look at")
    elif (reference := patient.bundle.manifest.reference) is None:
        do = "Export the bundle again with this version."
        yield Finding("drift", "warn", "the bundle has no reference: drift is not seen", do)
    else:
        yield Finding("drift", "ok", f"a reference of {reference.samples} good samples")


def look_at_engine(patient: Patient) -> Iterator[Finding]:
    """The engine: loads where it was asked to, scores as recorded, and how fast."""
    if patient.bundle is None:
        yield Finding("engine", "skipped", "there is no whole bundle to load")
        return
    model = patient.station.model
    started_s = time.monotonic()
    with engine_from_bundle(
        *(patient.bundle, model.provider),
        form=model.form,
        threads=model.threads,
        plan=model.plan,
        cuda_graph=model.cuda_graph,
    ) as engine:
        yield Finding(
            "engine", "ok", f"{engine.name}, loaded in {time.monotonic() - started_s:.1f} s"
        )
        spec = patient.bundle.manifest.spec
        one = msgspec.structs.replace(spec, batch=1)  # an engine fills the other places itself
        zeros = {t.name: np.zeros(t.shape, dtype=t.dtype) for t in one.inputs()}
        times_ms = []
        for _ in range(_RUNS):
            begun_s = time.perf_counter()
            engine.score(zeros)
            times_ms.append((time.perf_counter() - begun_s) * 1e3)
        yield _speed(patient, sorted(times_ms))
        golden = len(patient.bundle.manifest.golden)
        if not golden:
            yield Finding("engine", "warn", "the bundle has no golden samples to answer")
        elif problems := patient.golden_problems(patient.bundle, engine):
            do = "Export the bundle again, or use the provider that it was checked on (`cpu`)."
            yield Finding("engine", "fail", "; ".join(problems[:3]), do)
        else:
            yield Finding("engine", "ok", f"{golden} golden samples answered as recorded")


def _speed(patient: Patient, times_ms: list[float]) -> Finding:
    median_ms, worst_ms = times_ms[len(times_ms) // 2], times_ms[-1]
    batch = patient.bundle.manifest.spec.batch if patient.bundle is not None else 1
    what = "one part" if batch == 1 else f"one run, of up to {batch} parts,"
    said = f"{what} takes {median_ms:.2f} ms (longest of {len(times_ms)}: {worst_ms:.2f} ms)"
    if median_ms < patient.station.loop.budget_ms:
        return Finding("engine", "ok", said)
    said += f", the budget is {patient.station.loop.budget_ms:g} ms"
    do = "Take a faster provider or a smaller model, or raise loop.budget_ms."
    return Finding("engine", "warn", said, do)


def look_at_sources(patient: Patient) -> Iterator[Finding]:
    """Each source: fits the model, and gives one part that could be judged."""
    for name, source in patient.station.all_sources().items():
        check = f"source {name}"
        if patient.bundle is None:
            yield Finding(check, "skipped", "there is no whole bundle to hold it against")
        elif source.recording is None and holder_of(patient.outbox, "inspector") is not None:
            yield Finding(check, "skipped", "the inspector is at work on it; see Health")
        else:
            try:
                yield from _one_part(patient, check, name, source, patient.bundle.manifest.spec)
            except EdgeError as error:
                yield found_wrong(check, error)


def _one_part(
    patient: Patient, check: str, name: str, source: Source, spec: ModelSpec
) -> Iterator[Finding]:
    from_source = source_from(name, source, spec, paced=True)
    started_s = time.monotonic()
    parts = from_source.parts(patient.stop)
    try:
        part = next(iter(parts), None)
    finally:
        close = getattr(parts, "close", None)  # ends a camera's pipeline now, not at some time
        if close is not None:
            close()
    if part is None:
        yield Finding(check, "fail", "gave no part", "Check that the recording is not empty.")
        return
    took_s = time.monotonic() - started_s
    yield _frame_of(check, part[0], spec, took_s)
    if spec.sensor is not None:
        yield _window_of(check, part, from_source, spec)


def _frame_of(check: str, shot: Shot, spec: ModelSpec, took_s: float) -> Finding:
    if shot.frame is None:
        return Finding(check, "fail", shot.fault, "Check the camera or the recording's files.")
    height, width = shot.frame.pixels.shape[:2]
    said = f"a frame of {width}x{height} after {took_s:.1f} s, taken {shot.captured_at}"
    mean = float(shot.frame.pixels[::8, ::8].mean())
    if not _DARK < mean < _BRIGHT:
        do = "Look for a lens cap, the light and the exposure time."
        return Finding(check, "warn", f"{said}; its mean grey level is {mean:.0f}", do)
    model = spec.takes
    if abs(width / height - model.width / model.height) > _SHAPE_APART:
        do = "Set the camera to the shape of the frames that the model was trained on."
        said += f"; the model takes {model.width}x{model.height}, another shape: it is stretched"
        return Finding(check, "warn", said, do)
    if spec.frame is not None and (height, width) != (model.height, model.width):
        do = f"Set the camera to {model.width}x{model.height}, or export the bundle for this one: "
        do += f"record parts with it and give `edge export` --frame {width}x{height}."
        said += (
            f"; the bundle is made for {model.width}x{model.height}: each is resized to it first"
        )
        return Finding(check, "warn", said, do)
    return Finding(check, "ok", said)


def _window_of(
    check: str, part: tuple[Shot, Reading], source: PartSource, spec: ModelSpec
) -> Finding:
    shot, reading = part
    paired = pair(shot, reading, spec, source.tolerance_ms)
    do = "Check the sensor's plug, its pipeline and sensor_scale, and the times of both."
    if isinstance(paired, Unpaired):
        return Finding(check, "fail", paired.reason, do)
    if paired.sample.window is None or shot.frame is None or reading.window is None:
        return Finding(check, "warn", paired.remark or "no sensor window", do)
    apart_ms = abs(reading.window.captured_at_ns - shot.frame.captured_at_ns) / 1e6
    values = paired.sample.window.values
    ranges = ", ".join(
        f"{channel.name} {low:.3g} to {high:.3g} {channel.unit}"
        for channel, low, high in zip(
            paired.sample.window.channels, values.min(axis=1), values.max(axis=1), strict=True
        )
    )
    said = f"a sensor window {apart_ms:.2f} ms from the frame: {ranges}"
    return Finding(check, "ok", said)
