"""Parity: do the exported forms still say what the checkpoint says, on real held-out samples?

Every form scores the same samples through the same `prepare` and the same rule. What is compared
is the anomaly score, the decision, and the AUROC, its difference with an interval. A form that is
over its budget makes no bundle, and the ten samples that it judges worst are named.

A verdict flips when the decision differs. One kind of sample is left out of that count: one whose
checkpoint score is the threshold itself, to `SCORE_TIE`. The held-out normal part that set the
threshold may lie one float below it (`edge.verdict`), so that any rounding at all moves it across.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from edge.bundle import Parity, WorstSample
from edge.errors import AnswerIsNo
from edge.recording.format import Recording, SampleRow
from export.judge import Judged

CHECKPOINT = "checkpoint"
ONNX_FP32 = "onnx-fp32"
ONNX_INT8 = "onnx-int8"
ONNX_FP16 = "onnx-fp16"
ONNX_INT4 = "onnx-int4-weights"
HELD_OUT_SPLITS = ("val", "test")  # the first of these that the recording has
SCORE_TIE = 1e-5
_NAMED_SAMPLES = 10
_NORMAL_QUANTILE = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class Budget:
    """How far a form may be from the checkpoint.

    `flip_rate` is a share of the samples: with n of them, floor(rate * n) decisions may differ.
    On fewer than 1/rate samples that is none, although a single flip among so few does not show a
    higher rate (at a true 0.2 %, one in four sets of 137 shows one): there one may, unless the
    rate is 0. `score_error` is the largest difference of one anomaly score (0..1), None where only
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
# Fewer bits move scores; what they must not move is verdicts and the ranking of parts.
INT8_BUDGET = Budget(score_error=None, flip_rate=0.002, auroc_difference=0.001)

BUDGETS = {
    ONNX_FP32: FP32_BUDGET,
    ONNX_INT8: INT8_BUDGET,
    ONNX_FP16: INT8_BUDGET,
    ONNX_INT4: INT8_BUDGET,
}


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
    difference = auroc_difference(reference, candidate)
    return Parity(
        form=form,
        samples=len(reference),
        max_score_error=max(errors),
        mean_score_error=sum(errors) / len(errors),
        verdict_flips=len(_flipped(reference, candidate)),
        auroc_difference=difference[0],
        auroc_interval=difference[1],
        worst=_worst(reference, candidate),
    )


def excesses(parity: Parity, budget: Budget, judged: Sequence[Judged]) -> list[str]:
    """Say what of `parity` is over `budget`, one phrase each; none when it holds."""
    allowed = budget.flips_allowed(parity.samples)
    over = []
    if parity.verdict_flips > allowed:
        over.append(f"{parity.verdict_flips} verdicts differ, where {allowed} may")
    if not math.isfinite(parity.max_score_error):
        over.append("a score is no number")
    elif budget.score_error is not None and not parity.max_score_error <= budget.score_error:
        over.append(f"a score differs by {parity.max_score_error:.2g} > {budget.score_error:g}")
    limit = max(budget.auroc_difference, 1.0 / max(1, _pairs(judged)) + 1e-9)
    difference = parity.auroc_difference
    if difference is not None and not abs(difference) <= limit:
        over.append(f"AUROC differs by {difference:+.4f} > {limit:.2g}")
    return over


def budget_text(parity: Parity, budget: Budget, judged: Sequence[Judged]) -> str:
    """Say what is over `budget`, or that it holds, and where only for so few samples."""
    over = excesses(parity, budget, judged)
    if over:
        return "; ".join(over)
    difference = parity.auroc_difference
    if difference is None or abs(difference) <= budget.auroc_difference:
        return "holds"
    return f"holds (one pair of {_pairs(judged)} may swap)"


def check_budget(parity: Parity, budget: Budget, judged: Sequence[Judged], *, do: str) -> None:
    """Raise AnswerIsNo naming the worst samples when `parity` is over `budget`."""
    over = excesses(parity, budget, judged)
    if over:
        worst = "; ".join(map(_worst_text, parity.worst))
        raise AnswerIsNo(
            where=f"parity of {parity.form} with the checkpoint, {parity.samples} samples",
            expected="the same verdicts, within the budget",
            found=f"{'; '.join(over)}. Worst: {worst}",
            do=f"No bundle was written. {do}",
        )


def auroc_difference(
    reference: Sequence[Judged], candidate: Sequence[Judged]
) -> tuple[float | None, tuple[float, float] | None]:
    """Return how much the AUROC changed, and its 95 % interval; None where it is not known.

    Each sample's own part in the AUROC is its mean over the other kind (the structural components
    of DeLong et al., Biometrics 44, 1988). Their changes, summed over the samples of one part,
    are as many independent witnesses as there are parts (Obuchowski, Biometrics 53, 1997).
    """
    normal = np.asarray([one.normal for one in reference])
    if normal.all() or not normal.any():
        return None, None
    changes = _components(candidate, normal) - _components(reference, normal)
    difference = float(changes[~normal].mean())
    counts = np.where(normal, normal.sum(), (~normal).sum())
    places = np.unique([one.part or one.sample_id for one in reference], return_inverse=True)[1]
    sums = np.bincount(places, (changes - difference) / counts)
    parts = len(sums)
    if parts < 2 or not math.isfinite(difference):
        return difference, None
    deviation = math.sqrt(parts / (parts - 1) * float(np.sum(sums**2)))
    half = _NORMAL_QUANTILE * deviation
    return difference, (difference - half, difference + half)


def _components(judged: Sequence[Judged], normal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each sample's share of the other kind that it is on the right side of."""
    scores = np.nan_to_num(np.asarray([one.score for one in judged]), nan=-np.inf)
    ranks = stats.rankdata(scores)
    shares = np.zeros(len(scores))
    for kind in (normal, ~normal):
        below = (ranks[kind] - stats.rankdata(scores[kind])) / (~kind).sum()
        shares[kind] = below if kind is not normal else 1.0 - below
    return shares


def _pairs(judged: Sequence[Judged]) -> int:
    """Count the pairs of a normal and a defective sample: one of them is the AUROC's step."""
    normal = sum(one.normal for one in judged)
    return normal * (len(judged) - normal)


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


def _worst(reference: Sequence[Judged], candidate: Sequence[Judged]) -> tuple[WorstSample, ...]:
    """Name the flipped samples first, then those whose score moved most."""
    flipped = set(_flipped(reference, candidate))
    order = sorted(
        range(len(reference)),
        key=lambda i: (i not in flipped, -_score_error(reference[i], candidate[i])),
    )
    return tuple(
        WorstSample(
            sample_id=reference[i].sample_id,
            image=reference[i].image,
            checkpoint_score=reference[i].score,
            form_score=candidate[i].score,
            threshold=reference[i].verdict.threshold,
            flipped=i in flipped,
        )
        for i in order[:_NAMED_SAMPLES]
    )


def _worst_text(one: WorstSample) -> str:
    return (
        f"{one.sample_id} ({one.checkpoint_score:.4f} -> {one.form_score:.4f}, "
        f"threshold {one.threshold:.4f})"
    )
