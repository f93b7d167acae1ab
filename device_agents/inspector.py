"""The inspector: from a shot to a durable record. It knows no network and waits for none.

    camera -> pairing -> prepare -> engine -> verdict -> inspection -> outbox

A sample that may not be judged becomes an inspection too: decision `invalid`, with its reason,
counted, never a pass; and the loop goes on.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from device_agents.cameras.recording import Shot, iso_of
from device_agents.cursor import read_cursor
from device_agents.engine import engine_from_bundle
from device_agents.outbox import Outbox, is_worth_a_line
from device_agents.pairing import Paired, Unpaired, pair
from device_agents.playback import Playback
from device_agents.sensors.recording import Reading
from device_agents.station import StationFile
from edge.bundle import Bundle
from edge.errors import UnfitSample
from edge.messages import Inspection, Timings
from edge.model_spec import ModelSpec
from edge.prepare import model_inputs
from edge.scorer import Scorer, Scores
from edge.topics import StationId
from edge.verdict import Verdict, verdict_of

_CURSOR_EVERY_S = 0.2  # how often the inspector looks what the publisher got through
_REPORT_EVERY_S = 10.0

log = logging.getLogger("inspector")


@dataclass(frozen=True)
class Identity:
    """Who made an inspection, and its place in the station's count."""

    station: StationId
    station_epoch: str
    sequence: int


@dataclass(frozen=True)
class Judgement:
    """What came of one shot. `kind` is a counter's name where the sample was not judged."""

    verdict: Verdict
    modalities: tuple[str, ...]
    class_scores: dict[str, float]
    timings: Timings
    kind: str = ""


class Judge:
    """One engine with its rule: the device's path from a shot to a judgement."""

    def __init__(
        self, engine: Scorer, *, engine_name: str, bundle_digest: str, tolerance_ms: float
    ) -> None:
        self._engine = engine
        self.engine_name = engine_name
        self.bundle_digest = bundle_digest
        self._tolerance_ms = tolerance_ms

    def judge(self, shot: Shot, reading: Reading) -> Judgement:
        """Pair, prepare, score and judge. Never raises for what is wrong with the sample."""
        spec = self._engine.spec
        started = time.perf_counter()
        pairing = pair(shot, reading, spec, self._tolerance_ms)
        if isinstance(pairing, Unpaired):
            return _invalid(spec, pairing.kind, pairing.reason, started)
        try:
            inputs = model_inputs(pairing.sample, spec)
        except UnfitSample as error:
            reason = f"{error.where}: expected {error.expected}, found {error.found}"
            return _invalid(spec, "invalid_unfit", reason, started)
        prepared = time.perf_counter()
        scores = self._engine.score(inputs)
        inferred = time.perf_counter()
        return _judged(spec, pairing, scores, (started, prepared, inferred))


def inspection_of(shot: Shot, judgement: Judgement, judge: Judge, who: Identity) -> Inspection:
    """Put a judgement into the message that leaves the station."""
    verdict = judgement.verdict
    score = verdict.anomaly_score
    return Inspection(
        inspection_id=f"{who.station_epoch}-{who.sequence}",
        station=who.station,
        station_epoch=who.station_epoch,
        sequence=who.sequence,
        sample_id=shot.sample_id,
        part_id=shot.part_id,
        captured_at=shot.captured_at,
        inspected_at=iso_of(time.time_ns()),
        decision=verdict.decision,
        label=verdict.label,
        anomaly_score=score if math.isfinite(score) else None,
        threshold=verdict.threshold,
        class_scores=judgement.class_scores,
        modalities=judgement.modalities,
        reason=verdict.reason,
        bundle_digest=judge.bundle_digest,
        engine=judge.engine_name,
        timings=judgement.timings,
    )


def run_inspector(station: StationFile, stop: Event) -> dict[str, int]:
    """Inspect until the recording ends or `stop` is set; return the outbox's counters."""
    bundle = Bundle.open(Path(station.model.bundle))
    playback = Playback(station.source, bundle.manifest.spec, paced=True)
    model, limits = station.model, station.outbox
    path = Path(limits.path)
    with (
        Outbox.open(path, max_rows=limits.max_rows, max_bytes=limits.max_bytes) as outbox,
        engine_from_bundle(
            bundle, model.provider, form=model.form, threads=model.threads
        ) as engine,
    ):
        judge = Judge(
            engine,
            engine_name=engine.name,
            bundle_digest=bundle.digest,
            tolerance_ms=playback.tolerance_ms,
        )
        log.info("outbox %s, epoch %s, next %d", path, outbox.epoch, outbox.next_sequence)
        log.info("ready: %s at %g parts/s", engine.name, playback.parts_per_second)
        _inspect(playback, judge, outbox, station.station, stop)
        log.info("stopped: %s", _counters_text(outbox))
        return dict(outbox.counters)


def _inspect(
    playback: Playback, judge: Judge, outbox: Outbox, station: StationId, stop: Event
) -> None:
    """The loop: one part, one record."""
    looked_at = reported_at = time.monotonic()
    for shot, reading in playback.parts(stop):
        judgement = judge.judge(shot, reading)
        who = Identity(station, outbox.epoch, outbox.next_sequence)
        inspection = inspection_of(shot, judgement, judge, who)
        _count(outbox, shot, judgement, playback.period_ms)
        before = time.monotonic()
        outbox.append(inspection)
        now = time.monotonic()
        outbox.raise_to("append_max_ms", math.ceil((now - before) * 1e3))  # a slow disk, by name
        if now - looked_at > _CURSOR_EVERY_S:
            looked_at = now
            outbox.note_acknowledged(read_cursor(outbox.path, outbox.epoch).acknowledged)
        if now - reported_at > _REPORT_EVERY_S:
            reported_at = now
            log.info("%s", _counters_text(outbox))


def _judged(
    spec: ModelSpec, pairing: Paired, scores: Scores, marks_s: tuple[float, float, float]
) -> Judgement:
    assert spec.rule is not None, "Bundle.open refuses a spec without a rule"
    sample = pairing.sample
    with_sensor = spec.sensor is not None and sample.window is not None
    class_scores = [float(score) for score in scores.class_scores]
    verdict = verdict_of(
        scores.anomaly_score,
        class_scores,
        spec.classes,
        spec.rule,
        # A model that takes no sensor has nothing missing.
        sensor_present=with_sensor or spec.sensor is None,
    )
    timings = _timings(*marks_s)
    modalities = ("image", "sensor") if with_sensor else ("image",)
    if verdict.decision == "invalid":
        return Judgement(verdict, modalities, {}, timings, "invalid_score")
    if pairing.remark:
        verdict = Verdict(
            verdict.decision,
            verdict.label,
            verdict.anomaly_score,
            verdict.threshold,
            pairing.remark,
        )
    # JSON has no NaN: a class without a finite score is left out.
    by_class = dict(zip(spec.classes, class_scores, strict=True))
    finite = {name: score for name, score in by_class.items() if math.isfinite(score)}
    return Judgement(verdict, modalities, finite, timings)


def _invalid(spec: ModelSpec, kind: str, reason: str, started_s: float) -> Judgement:
    assert spec.rule is not None, "Bundle.open refuses a spec without a rule"
    now_s = time.perf_counter()
    timings = _timings(started_s, now_s, now_s)
    threshold = spec.rule.threshold.value
    return Judgement(Verdict("invalid", "", math.nan, threshold, reason), (), {}, timings, kind)


def _timings(started_s: float, prepared_s: float, inferred_s: float) -> Timings:
    """Milliseconds by room, rounded to a microsecond; `total_ms` ends now, with the verdict."""
    return Timings(
        prepare_ms=round((prepared_s - started_s) * 1e3, 3),
        infer_ms=round((inferred_s - prepared_s) * 1e3, 3),
        total_ms=round((time.perf_counter() - started_s) * 1e3, 3),
    )


def _count(outbox: Outbox, shot: Shot, judgement: Judgement, period_ms: float) -> None:
    outbox.count("inspected")
    outbox.count(judgement.verdict.decision)
    if judgement.kind:
        outbox.count(judgement.kind)
        if is_worth_a_line(outbox.counters[judgement.kind]):
            log.warning("%s is invalid: %s", shot.sample_id, judgement.verdict.reason)
    elif judgement.verdict.reason:
        outbox.count("image_only")
    if shot.late_ms > period_ms:
        outbox.count("late_frames")
    outbox.raise_to("late_max_ms", math.ceil(shot.late_ms))


def _counters_text(outbox: Outbox) -> str:
    counters = ", ".join(f"{name} {value}" for name, value in sorted(outbox.counters.items()))
    return f"{counters or 'nothing inspected'}; {outbox.depth} in the outbox"
