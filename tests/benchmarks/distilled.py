"""Does distillation pay? The same student by teacher and labels, and by labels alone.

Two students: `tiny`, whose frozen stem has seen ImageNet already, and a small vision transformer
that begins with nothing, as `small` to `600m` do without --init-from.

On ballscrew (synthetic pairing), at an equal training budget: as many steps on as many copies, the
same recipe, the same seed for both. Labels alone means that every lesson a teacher gives is left
out and no teacher is asked for anything; drawn masks are labels too. Once with all labels of the
training split and once with a tenth of them, where the other parts count as unlabelled: they teach
the distilled student through its teacher, and the other one nothing.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path

from scipy import stats

from tests.benchmarks.trained import distil, evaluation, import_ballscrew, lacking

# What 2 cores can pay 12 times over; the recipe itself says 18 epochs on 6 copies of 65,536 pixels.
# As many steps for a tenth of the parts as for all: 17 batches of 32 are the 530 parts once.
_STEPS = "train.min_steps_per_epoch=17"
_SIZE = "image.pixel_budget=16384"
BUDGET = ("train.epochs=12", "targets.copies=3", _SIZE, _STEPS)
QUICK_BUDGET = ("train.epochs=2", "targets.copies=1", _SIZE, _STEPS)
LABELS_ALONE = (
    "targets.teacher_share=0.0",
    "loss.soft_labels=0.0",
    "loss.features=0.0",
    "loss.summary=0.0",
    "loss.window=0.0",
)
KINDS = {"distilled": (), "labels alone": LABELS_ALONE}
SHARES = (1.0, 0.1)
FROM_NOTHING = (
    *("student.joint_depth=4", "student.width=192", "student.heads=6", "student.hidden=768"),
    *("train.learning_rate=0.001", "train.warmup_steps=50"),
)
STUDENTS = {"tiny": ("tiny", ()), "from nothing": ("small", FROM_NOTHING)}
METRICS = ("auroc", "auroc_image_only", "auroc_sensor_only", "aupro")


def run(*, quick: bool = False, students: tuple[str, ...] = tuple(STUDENTS)) -> dict | None:
    """Train every student and print the table; None where the data is missing."""
    if lacking():
        print(f"distilled: SKIPPED, {lacking()}")
        return None
    seeds = range(1 if quick else 3)
    budget = QUICK_BUDGET if quick else BUDGET
    figures: dict = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        import_ballscrew(folder / "rec")
        for student in students:
            measured = {
                (share, kind): [_one(folder, student, share, kind, seed, budget) for seed in seeds]
                for share in SHARES
                for kind in KINDS
            }
            print(f"\n{student}: ballscrew, split test (synthetic pairing), {len(seeds)} seeds")
            print("  " + " ".join(budget))
            figures[student] = {
                f"{share:.0%} of the labels": _table(share, measured) for share in SHARES
            }
    return figures


def _one(  # noqa: PLR0917 (what a training is told)
    folder: Path, student: str, share: float, kind: str, seed: int, budget: tuple[str, ...]
) -> dict:
    recipe, shape = STUDENTS[student]
    told = (*shape, *budget, *KINDS[kind], f"targets.label_share={share}", f"seed={seed}")
    trained, targets = folder / "run", folder / f"{student}{share}{kind}{seed}"
    seconds = distil(folder / "rec", recipe, told, trained, targets)
    found = evaluation(trained, folder / "rec")
    figures = {metric: found[metric] for metric in METRICS}
    said = ", ".join(f"{metric} {value:.4f}" for metric, value in figures.items())
    print(f"  {student}, {share:.0%} {kind}, seed {seed}: {said}, {seconds:.0f} s", flush=True)
    return {**figures, "seconds": seconds}


def _table(share: float, measured: dict) -> dict:
    """Print one share's rows; a difference is taken seed by seed."""
    ours, theirs = (measured[share, kind] for kind in KINDS)
    print(f"  {share:.0%} of the labels")
    rows = {}
    for metric in (*METRICS, "seconds"):
        columns = {kind: [one[metric] for one in measured[share, kind]] for kind in KINDS}
        gain = [a[metric] - b[metric] for a, b in zip(ours, theirs, strict=True)]
        low, high = _interval(gain)
        rows[metric] = {
            **{kind: statistics.mean(values) for kind, values in columns.items()},
            "gain": statistics.mean(gain),
            "gain, 95 % interval": (low, high),
        }
        told = ", ".join(f"{kind} {rows[metric][kind]:.4f}" for kind in KINDS)
        print(
            f"    {metric:18} {told}, gain {rows[metric]['gain']:+.4f} ({low:+.4f} to {high:+.4f})"
        )
    return rows


def _interval(values: list[float]) -> tuple[float, float]:
    """Student's t over the seeds; one seed has none."""
    if len(values) < 2:
        return (math.nan, math.nan)
    mean, error = statistics.mean(values), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, mean, error or 1e-12)
    return (float(low), float(high))
