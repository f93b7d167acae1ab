"""The judge: from parts to judgements, by one engine, its rule, and nothing else.

    pair -> prepare -> engine -> verdict

A part that may not be judged gets a judgement too: `invalid`, with its reason, never a pass.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from device_agents.inspector.drift import Drift
from device_agents.inspector.frame_queue import Part
from device_agents.pairing.pair import Paired, Unpaired, pair
from device_agents.pairing.plausible import Plausibility
from device_agents.parts import Shot, iso_of
from edge.bundle import Bundle
from edge.errors import UnfitSample
from edge.messages import Inspection, Timings
from edge.model_spec import ModelSpec
from edge.prepare import is_resized, model_inputs
from edge.reference import Reference
from edge.scorer import Engine, ModelInputs, Scores
from edge.topics import StationId
from edge.verdict import Verdict, verdict_of

log = logging.getLogger("inspector")


class BatchScorer(Protocol):
    """What the judge needs of an `edge.scorer.Engine`."""

    @property
    def spec(self) -> ModelSpec: ...  # noqa: D102

    def score(self, inputs: ModelInputs) -> Scores: ...  # noqa: D102

    def score_batch(self, several: Sequence[ModelInputs]) -> list[Scores]: ...  # noqa: D102


@dataclass(frozen=True)
class Identity:
    """Who made an inspection, and its place in the station's count."""

    station: StationId
    station_epoch: str
    sequence: int


@dataclass(frozen=True)
class Judgement:
    """What came of one part. `kind` is a counter's name where the part was not judged."""

    verdict: Verdict
    modalities: tuple[str, ...]
    class_scores: dict[str, float]
    timings: Timings
    kind: str = ""
    missing: str = ""  # a counter's name where the image was judged alone
    resized: bool = False  # its frame was of another size than those that the bundle is made for
    heat_map: NDArray[np.float32] | None = None  # [h, w], 0..1
    drift: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Fit:
    """A part that the engine may score."""

    part: Part
    pairing: Paired
    inputs: dict[str, NDArray[Any]]
    started_s: float
    prepared_s: float


class Judge:
    """One engine with its rule. `judge` is called by one thread at a time."""

    def __init__(
        self,
        engine: BatchScorer,
        *,
        engine_name: str,
        bundle_digest: str,
        reference: Reference | None = None,
    ) -> None:
        self._engine = engine
        self.engine_name = engine_name
        self.bundle_digest = bundle_digest
        self.spec = engine.spec
        self.engine_failures = 0  # in a row
        self.engine_fault = ""  # the last one
        self._plausibility = Plausibility(reference)
        self._drift = Drift(reference, engine.spec)
        self._told_of: set[str] = set()  # sources whose frames are of another size

    @property
    def drift(self) -> tuple[str, ...]:
        """What is unlike the bundle's reference now, by name."""
        return self._drift.flags

    def judge(self, parts: Sequence[Part]) -> list[Judgement]:
        """Judge up to `spec.batch` parts, in one run of the engine.

        Never raises for what is wrong with a part, nor where the engine fails on it.
        """
        prepared = [self._prepared(part) for part in parts]
        fit = [one for one in prepared if isinstance(one, _Fit)]
        judged = iter(self._scored(fit) if fit else ())
        return [next(judged) if isinstance(one, _Fit) else one for one in prepared]

    def too_late_for(self, part: Part) -> Judgement:
        """Return the answer for a triggered part that waited too long and gave up its frame."""
        reason = "the loop is behind: the part gave way to newer ones before it was judged"
        return self._invalid(part, "invalid_behind", reason, time.monotonic())

    def _prepared(self, part: Part) -> _Fit | Judgement:
        started_s = time.monotonic()
        pairing = pair(part.shot, part.reading, self.spec, part.tolerance_ms, self._plausibility)
        if isinstance(pairing, Unpaired):
            return self._invalid(part, pairing.kind, pairing.reason, started_s)
        try:
            inputs = model_inputs(pairing.sample, self.spec)
        except UnfitSample as error:
            reason = f"{error.where}: expected {error.expected}, found {error.found}"
            return self._invalid(part, "invalid_unfit", reason, started_s)
        return _Fit(part, pairing, inputs, started_s, time.monotonic())

    def _scored(self, fit: list[_Fit]) -> list[Judgement]:
        try:
            if self.spec.batch == 1:
                scores = [self._engine.score(one.inputs) for one in fit]
            else:
                scores = self._engine.score_batch([one.inputs for one in fit])
        except Exception as error:  # onnxruntime's own types share no base class but Exception
            self.engine_failures += 1
            said = str(error).splitlines()[0][:300] if str(error) else ""
            self.engine_fault = f"the engine failed: {type(error).__name__}: {said}"
            return [
                self._invalid(one.part, "invalid_engine", self.engine_fault, one.started_s)
                for one in fit
            ]
        self.engine_failures = 0
        inferred_s = time.monotonic()
        return [self._judged(one, its, inferred_s) for one, its in zip(fit, scores, strict=True)]

    def _judged(self, fit: _Fit, scores: Scores, inferred_s: float) -> Judgement:
        spec, pairing = self.spec, fit.pairing
        assert spec.rule is not None, "Bundle.open refuses a spec without a rule"
        with_sensor = spec.sensor is not None and pairing.sample.window is not None
        class_scores = scores.class_scores.tolist()
        verdict = verdict_of(
            scores.anomaly_score,
            class_scores,
            spec.classes,
            spec.rule,
            # A model that takes no sensor has nothing missing.
            sensor_present=with_sensor or spec.sensor is None,
        )
        if pairing.remark and verdict.decision != "invalid":
            verdict = Verdict(
                verdict.decision,
                verdict.label,
                verdict.anomaly_score,
                verdict.threshold,
                pairing.remark,
            )
        timings = _timings(fit.part, fit.started_s, fit.prepared_s, inferred_s)
        modalities = ("image", "sensor") if with_sensor else ("image",)
        # After the verdict and its time: what drifts is told, and changes nothing.
        drift = self._drift.see(pairing, scores, verdict)
        resized = self._is_resized(fit.part)
        if verdict.decision == "invalid":
            return Judgement(
                verdict=verdict,
                modalities=modalities,
                class_scores={},
                timings=timings,
                kind="invalid_score",
                resized=resized,
                drift=drift,
            )
        # JSON has no NaN: a class without a finite score is left out.
        by_class = zip(spec.classes, class_scores, strict=True)
        finite = {name: score for name, score in by_class if math.isfinite(score)}
        return Judgement(
            verdict=verdict,
            modalities=modalities,
            class_scores=finite,
            timings=timings,
            missing=pairing.kind,
            resized=resized,
            heat_map=scores.anomaly_map,
            drift=drift,
        )

    def _is_resized(self, part: Part) -> bool:
        """Tell whether `prepare` had to bring the frame to the bundle's size; log each source once.

        A camera that was set otherwise must not stop a line; but its parts are seen less sharply
        than those that the bundle was proven on, and prepared slowly.
        """
        size, frame, source = self.spec.frame, part.shot.frame, part.shot.source
        if size is None or frame is None or not is_resized(frame.pixels, self.spec):
            return False
        if source not in self._told_of:
            height, width = frame.pixels.shape[:2]
            self._told_of.add(source)
            log.warning(
                "source %s: frames of %dx%d, and the bundle is made for %dx%d: each is resized on "
                "the CPU first; export the bundle for this camera, or set the camera to that size",
                *(source, width, height, size.width, size.height),
            )
        return True

    def _invalid(self, part: Part, kind: str, reason: str, started_s: float) -> Judgement:
        assert self.spec.rule is not None, "Bundle.open refuses a spec without a rule"
        now_s = time.monotonic()
        timings = _timings(part, started_s, now_s, now_s)
        threshold = self.spec.rule.threshold.value
        return Judgement(
            verdict=Verdict("invalid", "", math.nan, threshold, reason),
            modalities=(),
            class_scores={},
            timings=timings,
            kind=kind,
        )


def judge_of(bundle: Bundle, engine: Engine) -> Judge:
    """Return the judge of a bundle's model, with the bundle's own reference."""
    return Judge(
        engine,
        engine_name=engine.name,
        bundle_digest=bundle.digest,
        reference=bundle.manifest.reference,
    )


def inspection_of(shot: Shot, judgement: Judgement, judge: Judge, who: Identity) -> Inspection:
    """Put a judgement into the message that leaves the station."""
    verdict = judgement.verdict
    score = verdict.anomaly_score
    return Inspection(
        inspection_id=inspection_id_of(who.station_epoch, who.sequence),
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
        source=shot.source,
        triggered=shot.triggered,
        drift=judgement.drift,
    )


def inspection_id_of(epoch: str, sequence: int) -> str:
    """Name an inspection for ever: one life of an outbox, and its place in it."""
    return f"{epoch}-{sequence}"


def _timings(part: Part, started_s: float, prepared_s: float, inferred_s: float) -> Timings:
    """Milliseconds by room, rounded to a microsecond; `total_ms` ends now, with the verdict."""
    return Timings(
        prepare_ms=round((prepared_s - started_s) * 1e3, 3),
        infer_ms=round((inferred_s - prepared_s) * 1e3, 3),
        total_ms=round((time.monotonic() - started_s) * 1e3, 3),
        wait_ms=round(max(0.0, started_s - part.shot.in_memory_s) * 1e3, 3),
    )
