"""One form of the model judges real samples as a station does: `prepare`, a scorer, the rule.

Kept light, because `edge verify` needs it on the device: no torch, no onnx.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edge.prepare import model_inputs
from edge.recording.format import Recording, SampleRow
from edge.scorer import Scorer, verdict_from
from edge.verdict import Verdict


@dataclass(frozen=True)
class Judged:
    """One sample as one form judged it."""

    sample_id: str
    normal: bool  # its label is the normal class
    score: float
    verdict: Verdict
    part: str = ""  # samples of one part are no independent witnesses
    image: str = ""  # its picture's file in the recording


def judged_by(
    scorers: Mapping[str, Scorer],
    recording: Recording,
    rows: Iterable[SampleRow],
) -> dict[str, list[Judged]]:
    """Judge every row with every scorer, one sample in memory at a time."""
    judged: dict[str, list[Judged]] = {form: [] for form in scorers}
    for row in rows:
        sample = recording.read_sample(row)
        normal = row.label == recording.normal_class
        for form, scorer in scorers.items():
            inputs = model_inputs(sample, scorer.spec)
            scores = scorer.score(inputs)
            verdict = verdict_from(scores, inputs, scorer.spec)
            judged[form].append(
                Judged(
                    row.sample_id,
                    normal,
                    scores.anomaly_score,
                    verdict,
                    row.part_id or row.sample_id,
                    row.image,
                )
            )
    return judged
