"""`edge distill`: train a student on a recording."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--force", action="store_true", help="replace an existing run")


def run(arguments: argparse.Namespace) -> int:
    """Train, then say where the run is and what to do next."""
    from distill.recipe import load_recipe
    from distill.train import RunFolders, distill, epochs_done_in, make_room
    from edge.cli.progress import Progress
    from edge.recording.format import Recording

    recipe = load_recipe(arguments.recipe, tuple(arguments.overrides))
    recording = Recording.open(arguments.recording)
    folders = RunFolders(arguments.out, arguments.targets, arguments.init_from)
    make_room(folders, recipe, resume=arguments.resume, force=arguments.force)
    try:
        record = distill(recording, recipe, folders, Progress)
    except KeyboardInterrupt:
        done = epochs_done_in(folders)
        print(
            f"edge: stopped after {done} of {recipe.train.epochs} epochs. Go on with the same "
            "command and --resume; at most the epoch under way is lost.",
            file=sys.stderr,
        )
        return _INTERRUPTED
    rule = record.spec.rule
    assert rule is not None
    counts = ", ".join(f"{count} {label}" for label, count in record.parts_by_label.items())
    print(f"{arguments.out}: student '{recipe.name}', distilled from {counts}")
    print(
        f"threshold {rule.threshold.value:.4f}, from {rule.threshold.normals} held-out normal "
        f"parts under a false-alarm budget of {rule.threshold.false_alarm_budget:.2%}"
    )
    for remark in record.remarks:
        print(f"note: {remark}")
    print(f"Measure it with: edge evaluate {arguments.out} {arguments.recording} --split test")
    return 0
