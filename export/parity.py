"""Parity: do the exported forms still say what the checkpoint says, on real held-out samples?

Every form scores the same samples through the same `prepare` and the same rule. What is compared
is the anomaly score, the decision, and the AUROC. A form that is over its budget makes no bundle.

A verdict flips when the decision differs. One kind of sample is left out of that count: one whose
checkpoint score is the threshold itself, to `SCORE_TIE`. The held-out normal part that set the
threshold lies one float below it by construction, so any rounding at all moves it across.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.evaluation.metrics import auroc
from edge.bundle import Parity
from edge.errors import AnswerIsNo
from edge.recording.format import Recording, SampleRow
from export.judge import Judged

CHECKPOINT = "checkpoint"
ONNX_FP32 = "onnx-fp32"
ONNX_INT8 = "onnx-int8"
HELD_OUT_SPLITS = ("val", "test")  # the first of these that the recording has
SCORE_TIE = 1e-5
_NAMED_SAMPLES = 5


@dataclass(frozen=True)
class Budget:
    """How far a form may be from the checkpoint.

    `flip_rate` is a share of the samples: with n of them, floor(rate * n) decisions may differ.
    On fewer than 1/rate samples that is none, although a single flip among so few does not show a
    higher rate (at a true 0.5 %, two in five sets of 100 show one): there one may, unless the rate
    is 0. `score_error` is the largest difference of one anomaly score (0..1), None where only
    verdicts count.
    """

    score_error: float | None
    flip_rate: float
    auroc_difference: float

    def flips_allowed(self, samples: int) -> int:
        """Return how many decisions may differ among `samples`."""
        if self.flip_rate == 0.0:
            return 0
        return max(1, math.floor(self.flip_rate * samples + 1e-9))


# Float rounding only: other kernels, another order of summation.
FP32_BUDGET = Budget(score_error=1e-3, flip_rate=0.0, auroc_difference=1e-3)
# INT8 moves scores; what it must not move is verdicts and the ranking of parts.
INT8_BUDGET = Budget(score_error=None, flip_rate=0.005, auroc_difference=0.002)

BUDGETS = {ONNX_FP32: FP32_BUDGET, ONNX_INT8: INT8_BUDGET}


def held_out_rows(recording: Recording) -> tuple[SampleRow, ...]:
    """Return the rows of the first held-out split. Raises InputError where there is none."""
    return recording.rows_in(
        *HELD_OUT_SPLITS,
        do="Give --calibration a recording that has held-out parts beside its train split, such as "
        "the one that the run was trained on.",
    )


def parity_of(form: str, reference: Sequence[Judged], candidate: Sequence[Judged]) -> Parity:
    """Compare two forms' judgements of the same samples, in the same order."""
    assert len(reference) == len(candidate) > 0
    errors = [_score_error(r, c) for r, c in zip(reference, candidate, strict=True)]
    before, after = _auroc(reference), _auroc(candidate)
    return Parity(
        form=form,
        samples=len(reference),
        max_score_error=max(errors),
        mean_score_error=sum(errors) / len(errors),
        verdict_flips=len(_flipped(reference, candidate)),
        auroc_difference=None if before is None or after is None else after - before,
    )


def check_budget(
    parity: Parity, budget: Budget, reference: Sequence[Judged], candidate: Sequence[Judged]
) -> None:
    """Raise AnswerIsNo naming the worst samples when `parity` is over `budget`."""
    allowed = budget.flips_allowed(parity.samples)
    over = []
    if parity.verdict_flips > allowed:
        over.append(f"{parity.verdict_flips} verdicts differ, where {allowed} may")
    if budget.score_error is not None and not parity.max_score_error <= budget.score_error:
        over.append(f"a score differs by {parity.max_score_error:.2g} > {budget.score_error:g}")
    difference = parity.auroc_difference
    if difference is not None and not abs(difference) <= budget.auroc_difference:
        over.append(f"AUROC differs by {difference:+.4f} > {budget.auroc_difference:g}")
    if over:
        raise AnswerIsNo(
            where=f"parity of {parity.form} with the checkpoint, {parity.samples} samples",
            expected="the same verdicts, within the budget",
            found=f"{'; '.join(over)}. Worst: {_worst(reference, candidate)}",
            do="No bundle was written. Leave out --int8-convolutions, calibrate on more samples "
            "(--samples), hold out more parts (from 200 on one verdict may differ), or train "
            "longer so that scores lie further from the threshold.",
        )


def _flipped(reference: Sequence[Judged], candidate: Sequence[Judged]) -> list[int]:
    return [
        number
        for number, (r, c) in enumerate(zip(reference, candidate, strict=True))
        if r.verdict.decision != c.verdict.decision
        and not abs(r.score - r.verdict.threshold) <= SCORE_TIE
    ]


def _score_error(reference: Judged, candidate: Judged) -> float:
    error = abs(reference.score - candidate.score)
    return error if math.isfinite(error) else math.inf


def _worst(reference: Sequence[Judged], candidate: Sequence[Judged]) -> str:
    """Name the flipped samples first, then those whose score moved most."""
    flipped = set(_flipped(reference, candidate))
    order = sorted(
        range(len(reference)),
        key=lambda i: (i not in flipped, -_score_error(reference[i], candidate[i])),
    )
    return ", ".join(
        f"{reference[i].sample_id} ({reference[i].score:.4f} -> {candidate[i].score:.4f}, "
        f"threshold {reference[i].verdict.threshold:.4f})"
        for i in order[:_NAMED_SAMPLES]
    )


def _auroc(judged: Sequence[Judged]) -> float | None:
    scores = np.asarray([one.score for one in judged])
    return auroc(scores, np.asarray([not one.normal for one in judged]))
