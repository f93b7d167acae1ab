"""`edge distill`: train a student on a recording, or the INT8 self of one that is trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli.progress import typed
from edge.cli.training import (
    INTERRUPTED,
    add_run_arguments,
    read_once,
    run_training,
    tell_threshold,
)
from edge.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.checkpoint import RunRecord
    from distill.journal.news import Journal
    from distill.recipe import Recipe
    from edge.recording.format import Recording

_MODEL_FILE = "config.json"  # of a Hugging Face model's folder
_UNFINISHED = ".unfinished"  # ends the folder of a run under way


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `edge distill`."""
    parser.add_argument("recording", metavar="REC", type=Path)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", metavar="NAME", help="a recipe's name, or a .toml file")
    what.add_argument(
        "--quantize",
        type=Path,
        metavar="RUN",
        help="train the INT8 self of this finished run instead: its own student, in float, is the "
        "teacher, and parts need no labels",
    )
    add_run_arguments(parser, out="RUN", example="train.epochs=5")
    parser.add_argument(
        "--teacher",
        dest="teachers",
        action="append",
        metavar="RUN|NAME",
        help="learn from this (may be said again): a run that was trained before, which judges "
        "the parts, or a backbone instead of the recipe's: efficientnet_lite2, a Hugging Face "
        "folder, or a name on the hub",
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
    if arguments.quantize is not None:
        from edge.cli.distill_quantize import run_quantize

        return run_quantize(arguments)
    return _run_distill(arguments)


def _run_distill(arguments: argparse.Namespace) -> int:
    from distill.train import distill
    from distill.training.run_folders import RunFolders
    from edge.cli.progress import Progress, is_main_process

    recipe, recording = read_once(lambda: _input(arguments))
    folders = RunFolders(
        arguments.out, arguments.targets, arguments.init_from, learns_from=recording.digest()
    )

    def train(journal: Journal, accelerator: Accelerator) -> RunRecord:
        own, known, remarks = recording, folders, list[str]()
        if arguments.skip_unreadable:
            own, opened, remarks = _readable(recording, recipe)
            known = replace(folders, opened=opened)
        return distill(own, recipe, known, Progress, journal, accelerator, tuple(remarks))

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

    overrides = (*arguments.overrides, *_teachers(arguments.teachers or ()))
    return load_recipe(arguments.recipe, overrides), Recording.open(arguments.recording)


def _readable(
    recording: Recording, recipe: Recipe
) -> tuple[Recording, dict[Path, Recording], list[str]]:
    """Leave out what cannot be read, of the stages' recordings too; say what of each."""
    from distill.dataset import without_unreadable
    from edge.cli.progress import Progress
    from edge.recording.format import Recording

    own, told = without_unreadable(recording, Progress)
    opened, remarks = dict[Path, Recording](), [told]
    for folder in {folder: None for stage in recipe.all_stages() for folder in stage.recordings}:
        opened[folder], told = without_unreadable(Recording.open(folder), Progress)
        remarks.append(told)
    return own, opened, [remark for remark in remarks if remark]


def _teachers(names: Sequence[str]) -> Iterator[str]:
    """Yield the overrides that name backbones, and runs, in the recipe's stead."""
    from distill.checkpoint import RECORD_FILE

    # With a dot in front a recipe's file counts from its own folder, a person from where they are.
    paths = [str(Path(name).absolute()) if name.startswith(".") else name for name in names]
    runs = [path for path in paths if (Path(path) / RECORD_FILE).is_file()]
    backbones = [path for path in paths if path not in runs]
    for folder in filter(Path.is_dir, map(Path, backbones)):
        if not (folder / _MODEL_FILE).is_file():
            raise _no_teacher(folder)
    for key, those in (("backbones", backbones), ("runs", runs)):
        if those:
            # A list of strings is written in TOML as it is in JSON.
            yield f"teacher.{key}={json.dumps(those, ensure_ascii=False)}"


def _no_teacher(folder: Path) -> InputError:
    do = "Name the run's or the model's own folder."
    if folder.suffix == _UNFINISHED:
        do = "Finish that run first: give its own command again, with --resume."
    return InputError(
        where=f"--teacher {folder}",
        expected=f"a finished run (a folder with run.json), or a vision model's ({_MODEL_FILE})",
        found="a folder with neither",
        do=do,
    )


def _tell(record: RunRecord, arguments: argparse.Namespace) -> None:
    counts = ", ".join(f"{count} {label}" for label, count in record.parts_by_label.items())
    print(f"{arguments.out}: student '{record.recipe.name}', distilled from {counts}")
    tell_threshold(record)
    for remark in record.remarks:
        print(f"note: {remark}")
    evaluate = ("edge", "evaluate", arguments.out, arguments.recording, "--split", "test")
    print(f"Measure it with: {typed(*evaluate)}")
