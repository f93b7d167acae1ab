"""Does distillation pay? A student taught by teachers and labels, beside one of labels alone.

    python -m tests.benchmarks distilled            more than an hour
    python -m tests.benchmarks distilled --quick    one seed, two epochs

On ballscrew (synthetic pairing), with all labels of the training split and with a tenth of them, at
an equal training budget: the same recipe, as many steps on as many copies, the same seeds. Three
ways to learn:

- labels alone: every lesson of a teacher is left out, and an unlabelled part teaches nothing;
- three runs and labels: the runs of labels alone, one a seed, judge every part as one teacher;
- backbone and labels: the embedded teacher, its memory of normal parts and its heads.

The runs know no label that their student has not. Which tenth is known is drawn anew for each draw;
what a draw gains is the mean over its seeds, and the interval is over the draws (with all labels,
where there is but one draw, over the seeds).
"""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from scipy import stats

from distill.label_share import with_labels_of
from edge.recording.format import FILES_FOLDER, Recording, write_recording
from tests.benchmarks.trained import distil, evaluation, import_ballscrew, lacking

# What 2 cores can pay 30 times over; the recipe itself says 18 epochs on 6 copies of 65,536 pixels.
# As many steps for a tenth of the parts as for all: 17 batches of 32 are the 530 parts once.
_SIZE = ("image.pixel_budget=16384", "train.min_steps_per_epoch=17")
BUDGET = ("train.epochs=12", "targets.copies=3", *_SIZE)
QUICK_BUDGET = ("train.epochs=2", "targets.copies=1", *_SIZE)
_NO_FEATURES = ("loss.features=0.0", "loss.summary=0.0", "loss.window=0.0")
LABELS_ALONE = ("targets.teacher_share=0.0", "loss.soft_labels=0.0", *_NO_FEATURES)
BY_RUNS = ("targets.teacher_share=0.5", *_NO_FEATURES)
ALONE, RUNS, BACKBONE = "labels alone", "three runs and labels", "backbone and labels"
SEEDS = (0, 1, 2)
DRAWS = {"all labels": (1.0, (0,)), "a tenth of the labels": (0.1, (0, 1, 2))}
METRICS = ("auroc", "auroc_image_only", "auroc_sensor_only", "aupro")


def run(*, quick: bool = False) -> dict | None:
    """Train every student and print the tables; None where the data is missing."""
    if lacking():
        print(f"distilled: SKIPPED, {lacking()}")
        return None
    budget, seeds = (QUICK_BUDGET, SEEDS[:1]) if quick else (BUDGET, SEEDS)
    figures: dict = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        import_ballscrew(folder / "whole")
        for title, (share, draws) in DRAWS.items():
            drawn = {}
            for draw in draws[:1] if quick else draws:
                known = labels_kept(folder / "whole", share, draw, folder / "known")
                drawn[draw] = _of_draw(known, folder, seeds, budget)
            print(f"\n{title}: ballscrew, split test (synthetic pairing), tiny, {' '.join(budget)}")
            figures[title] = _table(drawn)
    return figures


def labels_kept(whole: Path, share: float, draw: int, out: Path) -> Path:
    """Write the recording with this share of the training labels, the others withheld."""
    recording = Recording.open(whole)
    rows = recording.rows_in("train")
    kept = with_labels_of(share, rows, recording.normal_class, draw)
    by_id = {row.sample_id: row for row in kept}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (out / FILES_FOLDER).symlink_to(whole / FILES_FOLDER)
    header = msgspec.structs.replace(recording.header, name=f"{recording.header.name}-{draw}")
    write_recording(out, header, [by_id.get(row.sample_id, row) for row in recording.rows])
    return out


def _of_draw(
    known: Path, folder: Path, seeds: Sequence[int], budget: Sequence[str]
) -> dict[str, list[dict]]:
    """Train all three kinds on one draw of labels, each from every seed."""
    teachers = [folder / f"alone-{seed}" for seed in seeds]
    named = f"teacher.runs={[str(teacher) for teacher in teachers]}"
    kinds = {ALONE: LABELS_ALONE, RUNS: (*BY_RUNS, named), BACKBONE: ()}
    figures: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for kind, told in kinds.items():
        for seed, teacher in zip(seeds, teachers, strict=True):
            out = teacher if kind == ALONE else folder / "student"
            targets = folder / "targets"
            seconds = distil(known, "tiny", (*budget, *told, f"seed={seed}"), out, targets)
            shutil.rmtree(targets)
            found = evaluation(out, known)
            one = {metric: found[metric] for metric in METRICS} | {"seconds": seconds}
            figures[kind].append(one)
            said = ", ".join(f"{metric} {value:.4f}" for metric, value in one.items())
            print(f"  {kind}, seed {seed}: {said}", flush=True)
    return figures


def _table(drawn: dict[int, dict[str, list[dict]]]) -> dict:
    """Print each kind's mean, and what it gains over labels alone, seed by seed."""
    rows: dict = {}
    for metric in (*METRICS, "seconds"):
        rows[metric] = {}
        for kind in (ALONE, RUNS, BACKBONE):
            values = [one[metric] for draw in drawn.values() for one in draw[kind]]
            row = {"mean": statistics.mean(values), "values": values}
            told = f"    {metric:18} {kind:22} {row['mean']:9.4f}"
            if kind != ALONE:
                gains = _gains(drawn, kind, metric)
                low, high = _interval(gains)
                row |= {"gain": statistics.mean(gains), "gain, 95 % interval": (low, high)}
                told += f"   gain {row['gain']:+.4f} ({low:+.4f} to {high:+.4f})"
            print(told)
            rows[metric][kind] = row
    return rows


def _gains(drawn: dict[int, dict[str, list[dict]]], kind: str, metric: str) -> list[float]:
    """Return the gain of each draw, or of each seed where there is but one draw."""
    by_draw = [
        [one[metric] - alone[metric] for one, alone in zip(draw[kind], draw[ALONE], strict=True)]
        for draw in drawn.values()
    ]
    return by_draw[0] if len(by_draw) == 1 else [statistics.mean(gains) for gains in by_draw]


def _interval(values: list[float]) -> tuple[float, float]:
    """Student's t over what was repeated; one value has none."""
    if len(values) < 2:
        return (math.nan, math.nan)
    mean, error = statistics.mean(values), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, mean, error or 1e-12)
    return (float(low), float(high))
