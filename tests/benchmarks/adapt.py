"""What `edge adapt` is worth: a student of one simulated line taken to another, with few parts.

Both lines and every part are simulated (see `other_line`). The student is distilled on the first;
the second's parts come as they come off the line, defects among them, and `test` is never learned
from. Beside it: the student as it was, and one distilled anew on all parts of the second line.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from edge.recording.format import FILES_FOLDER, Recording, write_recording
from edge.recording.splits import seeded_order
from tests.benchmarks.other_line import first_line, other_line
from tests.benchmarks.trained import distil, edge, evaluation

COUNTS = (5, 20, 50)
SEEDS = (0, 1, 2)  # of which parts are drawn


class Lines(NamedTuple):
    """Where the student is from, and where it goes."""

    first: Recording
    other: Recording


_QUICK = ("targets.copies=1", "train.epochs=1", "adapt.few_shot_epochs=1", "adapt.epochs=1")


def run(*, quick: bool = False) -> dict:
    """Distil, adapt and print AUROC and score loss before and after, and minutes."""
    counts, seeds = ((5,), (0,)) if quick else (COUNTS, SEEDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = 60 if quick else 400
        lines = Lines(first_line(folder / "first", parts), other_line(folder / "other", parts))
        overrides = _QUICK if quick else ()
        began = folder / "began"
        distil(lines.first.folder, "tiny", overrides, began, folder / "targets-first")
        figures = {"first line, test": evaluation(began, lines.first.folder)["auroc"]}
        figures["other line, as it was"] = evaluation(began, lines.other.folder)["auroc"]
        _print_head(figures)
        for count in counts:
            areas = [_adapted(began, lines, count, seed, folder) for seed in seeds]
            figures[f"{count} parts"] = areas
        if not quick:
            everything = len({row.part_id for row in lines.other.rows_in("train")})
            figures[f"{everything} parts"] = [_adapted(began, lines, everything, 0, folder)]
            seconds = distil(
                lines.other.folder, "tiny", (), folder / "anew", folder / "targets-other"
            )
            figures["distilled anew"] = evaluation(folder / "anew", lines.other.folder)["auroc"]
            print(
                f"  distilled anew: AUROC {figures['distilled anew']:.4f}, {seconds / 60:.1f} min"
            )
    return figures


def _adapted(began: Path, lines: Lines, count: int, seed: int, folder: Path) -> dict:
    """Adapt to so many parts, and measure on both lines' `test`."""
    out, taken = folder / "adapted", folder / "taken"
    some_parts(lines.other, count, seed, taken)
    started = time.monotonic()
    edge("adapt", began, taken, "--out", out, "--force")
    minutes = (time.monotonic() - started) / 60.0
    found, kept = evaluation(out, lines.other.folder), evaluation(out, lines.first.folder)
    print(
        f"  {count:4} parts, draw {seed}: AUROC {found['auroc']:.4f} on the other line, "
        f"{kept['auroc']:.4f} on the first; {minutes:.1f} min",
        flush=True,
    )
    return {"auroc": found["auroc"], "first_line_auroc": kept["auroc"], "minutes": minutes}


def some_parts(line: Recording, count: int, seed: int, out: Path) -> Recording:
    """Copy so many parts of the line's training split, and nothing that is held out."""
    rows = line.rows_in("train")
    drawn = set(seeded_order([row.part_id for row in rows], seed)[:count])
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(line.folder / FILES_FOLDER, out / FILES_FOLDER)
    write_recording(out, line.header, [row for row in rows if row.part_id in drawn])
    return Recording.open(out)


def _print_head(figures: dict) -> None:
    print("\nadapt: a student of one simulated line on another, AUROC on `test`")
    for name, area in figures.items():
        print(f"  {name}: {area:.4f}", flush=True)
