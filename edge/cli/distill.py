"""`edge distill`: train a student on a recording."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli.training import (
    INTERRUPTED,
    add_run_arguments,
    read_once,
    run_training,
    tell_threshold,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.checkpoint import RunRecord
    from distill.journal.news import Journal
    from distill.recipe import Recipe
    from edge.recording.format import Recording


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `edge distill`."""
    parser.add_argument("recording", metavar="REC", type=Path)
    parser.add_argument(
        "--recipe", required=True, metavar="NAME", help="a recipe's name, or a .toml file"
    )
    add_run_arguments(parser, out="RUN", example="train.epochs=5")
    parser.add_argument(
        "--teacher",
        dest="teachers",
        action="append",
        metavar="NAME",
        help="learn from this backbone instead of the recipe's (may be said again): "
        "efficientnet_lite2, a Hugging Face folder, or a name on the hub",
    )
    parser.add_argument(
        "--targets",
        type=Path,
        metavar="FOLDER",
        help="keep the teacher's targets here, to share them between runs (default: in the run)",
    )
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="PATH",
        help="start the student from public weights: a Hugging Face folder or a .safetensors file",
    )
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out samples whose files cannot be read, and name them, instead of stopping",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, then say where the run is and what to do next."""
    from distill.dataset import without_unreadable
    from distill.train import distill
    from distill.training.run_folders import RunFolders
    from edge.cli.progress import Progress, is_main_process

    recipe, recording = read_once(lambda: _input(arguments))
    folders = RunFolders(
        arguments.out, arguments.targets, arguments.init_from, learns_from=recording.digest()
    )

    def train(journal: Journal, accelerator: Accelerator) -> RunRecord:
        readable, told = recording, ""
        if arguments.skip_unreadable:
            readable, told = without_unreadable(recording, Progress)
        remarks = (told,) if told else ()
        return distill(readable, recipe, folders, Progress, journal, accelerator, remarks)

    record = run_training(arguments, folders, recipe, train)
    if record is None:
        return INTERRUPTED
    if is_main_process():
        _tell(record, arguments)
    return 0


def _input(arguments: argparse.Namespace) -> tuple[Recipe, Recording]:
    """Read recipe and recording."""
    from distill.recipe import load_recipe
    from edge.recording.format import Recording

    overrides = list(arguments.overrides)
    if arguments.teachers:
        # A list of strings is written in TOML as it is in JSON.
        names = json.dumps(arguments.teachers, ensure_ascii=False)
        overrides.append(f"teacher.backbones={names}")
    return load_recipe(arguments.recipe, tuple(overrides)), Recording.open(arguments.recording)


def _tell(record: RunRecord, arguments: argparse.Namespace) -> None:
    counts = ", ".join(f"{count} {label}" for label, count in record.parts_by_label.items())
    print(f"{arguments.out}: student '{record.recipe.name}', distilled from {counts}")
    tell_threshold(record)
    for remark in record.remarks:
        print(f"note: {remark}")
    print(f"Measure it with: edge evaluate {arguments.out} {arguments.recording} --split test")
