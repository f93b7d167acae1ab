"""The bundle's reference, from the held-out normal parts that the thresholds stand on too.

Each part is seen as the device sees it: `prepare`, the INT8 model, the rule. The device then holds
what comes in against these figures (drift), and never changes a verdict by them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.model_spec import ModelSpec
from edge.prepare import model_inputs
from edge.recording.format import Recording, SampleRow
from edge.reference import (
    ChannelReference,
    EmbeddingReference,
    FrameFigures,
    FrameReference,
    Reference,
    WindowFigures,
    channel_reference,
    embedding_reference,
    frame_figures,
    score_reference,
    spread_of,
    window_figures,
)
from edge.sample import Sample
from edge.scorer import Scorer
from export.judge import verdict_from

_LEAST_PASSED = 2  # one embedding has no distance to itself


@dataclass
class _Seen:
    """What one pass over the normal parts collects; windows are kept, pictures are not."""

    parts: set[str] = field(default_factory=set)
    sides: list[int] = field(default_factory=list)
    frames: list[FrameFigures] = field(default_factory=list)
    windows: list[NDArray[np.float32]] = field(default_factory=list)
    readings: list[WindowFigures] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    embeddings: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, sample: Sample, spec: ModelSpec, scorer: Scorer) -> None:
        self.parts.add(sample.part_id or sample.sample_id)
        self.sides.append(max(sample.frame.pixels.shape[:2]))
        self.frames.append(frame_figures(sample.frame.pixels))
        inputs = model_inputs(sample, spec)
        if spec.sensor is not None:
            if sample.window is None:
                return
            self.windows.append(sample.window.values)
            self.readings.append(window_figures(sample.window.values))
        scores = scorer.score(inputs)
        if verdict_from(scores, inputs, spec).decision == "pass":
            self.scores.append(scores.anomaly_score)
            self.embeddings.append(scores.embedding)


def reference_of(
    scorer: Scorer, recording: Recording, rows: Iterable[SampleRow]
) -> Reference | None:
    """Measure the normal ones among `rows`; None where there is none."""
    spec, seen, splits = scorer.spec, _Seen(), set()
    for row in rows:
        if row.label == recording.normal_class:
            splits.add(row.split)
            seen.add(recording.read_sample(row), spec, scorer)
    if not seen.frames:
        return None
    channels: tuple[ChannelReference, ...] = ()
    if spec.sensor is not None and seen.windows:
        channels = tuple(
            channel_reference(
                channel.name, [window[index] for window in seen.windows], seen.readings, index
            )
            for index, channel in enumerate(spec.sensor.channels)
        )
    return Reference(
        split=", ".join(sorted(splits)),
        samples=len(seen.frames),
        parts=len(seen.parts),
        frame=_frame_reference(seen),
        scores=score_reference(np.array(seen.scores)),
        embedding=_embedding_of(seen),
        channels=channels,
    )


def _frame_reference(seen: _Seen) -> FrameReference:
    return FrameReference(
        longest_side=(min(seen.sides), max(seen.sides)),
        focus=spread_of(np.array([one.focus for one in seen.frames])),
        level=spread_of(np.array([one.level for one in seen.frames])),
        black=spread_of(np.array([one.black for one in seen.frames])),
        white=spread_of(np.array([one.white for one in seen.frames])),
    )


def _embedding_of(seen: _Seen) -> EmbeddingReference | None:
    if len(seen.embeddings) < _LEAST_PASSED:
        return None
    return embedding_reference(np.stack(seen.embeddings))
