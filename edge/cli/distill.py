"""`edge distill`: train a student on a recording."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import EdgeError

if TYPE_CHECKING:
    from distill.checkpoint import RunRecord
    from distill.recipe import Recipe
    from edge.recording.format import Recording

_INTERRUPTED = 130  # what shells report for Ctrl-C


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `edge distill`."""
    parser.add_argument("recording", metavar="REC", type=Path)
    parser.add_argument(
        "--recipe", required=True, metavar="NAME", help="a recipe's name, or a .toml file"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the new run")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one key of the recipe, such as train.epochs=5",
    )
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
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    either.add_argument(
        "--force", action="store_true", help="replace an existing run, or begin anew"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, then say where the run is and what to do next."""
    from distill.dataset import without_unreadable
    from distill.train import distill
    from distill.training.processes import accelerator_for, on_main
    from distill.training.run_folders import RunFolders, make_room, saved_text
    from edge.cli.progress import Progress, is_main_process
    from edge.cli.training_display import journal_for

    recipe, recording = _input(arguments)
    folders = RunFolders(
        arguments.out, arguments.targets, arguments.init_from, learns_from=recording.digest()
    )
    accelerator = accelerator_for(recipe.train)
    room = {"resume": arguments.resume, "force": arguments.force}
    on_main(accelerator, lambda: make_room(folders, recipe, **room))
    try:
        remarks: tuple[str, ...] = ()
        if arguments.skip_unreadable:
            recording, told = without_unreadable(recording, Progress)
            remarks = (told,) if told else ()
        journal = journal_for(folders.unfinished)
        record = distill(recording, recipe, folders, Progress, journal, accelerator, remarks)
    except KeyboardInterrupt:
        if is_main_process():
            print(
                f"edge: stopped: {saved_text(folders, recipe)}. Go on with the same command and "
                "--resume.",
                file=sys.stderr,
            )
        return _INTERRUPTED
    accelerator.end_training()
    if is_main_process():
        _tell(record, arguments)
    return 0


def _input(arguments: argparse.Namespace) -> tuple[Recipe, Recording]:
    """Read recipe and recording. Of several processes, one says what is wrong with them."""
    from distill.recipe import load_recipe
    from edge.cli.progress import is_main_process
    from edge.recording.format import Recording

    overrides = list(arguments.overrides)
    if arguments.teachers:
        # A list of strings is written in TOML as it is in JSON.
        names = json.dumps(arguments.teachers, ensure_ascii=False)
        overrides.append(f"teacher.backbones={names}")
    try:
        return load_recipe(arguments.recipe, tuple(overrides)), Recording.open(arguments.recording)
    except EdgeError as error:
        if is_main_process():
            raise
        sys.exit(error.exit_status)


def _tell(record: RunRecord, arguments: argparse.Namespace) -> None:
    rule = record.spec.rule
    assert rule is not None
    counts = ", ".join(f"{count} {label}" for label, count in record.parts_by_label.items())
    print(f"{arguments.out}: student '{record.recipe.name}', distilled from {counts}")
    print(
        f"threshold {rule.threshold.value:.4f}, from {rule.threshold.normals} held-out normal "
        f"parts under a false-alarm budget of {rule.threshold.false_alarm_budget:.2%}"
    )
    for remark in record.remarks:
        print(f"note: {remark}")
    print(f"Measure it with: edge evaluate {arguments.out} {arguments.recording} --split test")
