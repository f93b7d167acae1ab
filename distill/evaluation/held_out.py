"""A student on held-out parts in two numbers, to compare one before and after.

Shapes: N samples.
"""

from __future__ import annotations

import numpy as np

from distill.checkpoint import HeldOut
from distill.dataset import Progress
from distill.evaluation.metrics import auroc
from edge.prepare import model_inputs
from edge.recording.format import UNLABELLED, Recording
from edge.scorer import Scorer

_LEAST_PROBABILITY = 1e-6  # one part may not weigh more than all others


def held_out_on(
    scorer: Scorer, recording: Recording, split: str, progress: Progress
) -> HeldOut | None:
    """Score the labelled parts of a split; None where it has none.

    Any label but the normal one counts as "not normal", whether the student knows it or not.
    """
    rows = [row for row in recording.rows if row.split == split and row.label != UNLABELLED]
    if not rows:
        return None
    scores_N = np.array(
        [
            scorer.score(model_inputs(recording.read_sample(row), scorer.spec)).anomaly_score
            for row in (rows[number] for number in progress(f"measuring {split}")(range(len(rows))))
        ]
    )
    anomalous_N = np.array([row.label != recording.normal_class for row in rows])
    truth_N = np.where(anomalous_N, scores_N, 1.0 - scores_N)
    return HeldOut(
        normals=int((~anomalous_N).sum()),
        others=int(anomalous_N.sum()),
        auroc=auroc(scores_N, anomalous_N),
        score_loss=float(-np.log(np.clip(truth_N, _LEAST_PROBABILITY, 1.0)).mean()),
    )
