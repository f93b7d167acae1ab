"""How far INT8 moves the scores of held-out parts, before and after training, and what that says.

Shapes: N samples.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from distill.checkpoint import ScoreMovement
from distill.dataset import Progress
from edge.errors import AnswerIsNo
from edge.prepare import model_inputs
from edge.recording.format import Recording
from edge.scorer import Scorer

_CONFIDENCE = 0.95


def held_out_scores(
    scorer: Scorer, recording: Recording, split: str, progress: Progress
) -> NDArray[np.float64]:
    """Return the anomaly score [N] of every sample of a split."""
    rows = recording.rows_in(split)
    bar = progress(f"comparing float and int8 on {split}")(range(len(rows)))
    inputs = (model_inputs(recording.read_sample(rows[number]), scorer.spec) for number in bar)
    return np.array([scorer.score(one).anomaly_score for one in inputs])


def distances(float_N: NDArray[np.float64], int8_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each score moved. Raises AnswerIsNo where INT8 gives no number."""
    if not np.isfinite(int8_N).all():
        raise AnswerIsNo(
            where="the student in int8",
            expected="finite anomaly scores",
            found=f"{int((~np.isfinite(int8_N)).sum())} of {len(int8_N)} that are no numbers",
            do="Lower quantize.learning_rate, or export the run as it is.",
        )
    return np.abs(int8_N - float_N)


def movement_of(moved_N: NDArray[np.float64]) -> ScoreMovement:
    """Put distances into the two numbers that the record keeps."""
    return ScoreMovement(len(moved_N), float(moved_N.mean()), float(moved_N.max()))


def is_nearer(before: ScoreMovement, after: ScoreMovement) -> bool:
    """Tell whether the scores lie nearer to the float student's, be it by chance."""
    return after.mean < before.mean


def movement_remarks(
    before_N: NDArray[np.float64], after_N: NDArray[np.float64], run: str
) -> tuple[str, ...]:
    """Say where training made nothing better, and where that may be chance.

    Nobody should ship a run for its name, nor for a difference that other parts would not show.
    """
    remarks = []
    low, high = _gain(before_N, after_N)
    if low <= 0.0 <= high:
        remarks.append(
            f"{len(before_N)} held-out samples are too few to tell what training did from chance: "
            f"it brought the score between {low:+.5f} and {high:+.5f} nearer (95 %, paired)"
        )
    if not is_nearer(movement_of(before_N), movement_of(after_N)):
        remarks.append(
            f"training did NOT bring the INT8 self nearer to its float teacher: export {run}, "
            "or try other quantize.epochs and quantize.learning_rate"
        )
    return tuple(remarks)


def _gain(before_N: NDArray[np.float64], after_N: NDArray[np.float64]) -> tuple[float, float]:
    """Return Student's interval of the mean paired difference; above 0 is nearer."""
    gained_N = before_N - after_N
    if len(gained_N) < 2:  # one sample has no spread
        return -math.inf, math.inf
    error = float(gained_N.std(ddof=1)) / math.sqrt(len(gained_N))
    reach = float(stats.t.ppf((1.0 + _CONFIDENCE) / 2.0, len(gained_N) - 1)) * error
    mean = float(gained_N.mean())
    return mean - reach, mean + reach
