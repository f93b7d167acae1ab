"""What normal parts look like to a model: of the training parts in a run, of held-out in a bundle.

Each part is seen as the device sees it: `prepare`, the model, the rule. By a run's reference,
`edge export` sees whether calibration samples are like the training's; by a bundle's, the device
sees drift. Neither ever changes a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from distill.dataset import Progress
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
from edge.scorer import Scorer, verdict_from

COMPARED_PARTS = 128  # of a recording: enough for a middle and a deviation
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


def normal_rows(recording: Recording, rows: Sequence[SampleRow]) -> tuple[SampleRow, ...]:
    """Return at most `COMPARED_PARTS` normal samples of `rows`, spread evenly over them."""
    normal = [row for row in rows if row.label == recording.normal_class]
    step = max(1, math.ceil(len(normal) / COMPARED_PARTS))
    return tuple(normal[::step])


def reference_of_training(
    scorer: Scorer, recording: Recording, rows: Sequence[SampleRow], progress: Progress
) -> Reference | None:
    """Measure some of the normal ones among the rows that a run learned from."""
    some = normal_rows(recording, rows)
    numbers = progress("what normal parts look like")(range(len(some)))
    return reference_of(scorer, recording, (some[number] for number in numbers))


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
