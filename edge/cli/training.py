"""What `edge distill` and `edge adapt` share: their options, and a training that can be stopped."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edge.cli.progress import say
from edge.errors import EdgeError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.checkpoint import RunRecord
    from distill.journal.news import Journal
    from distill.recipe import Recipe
    from distill.training.run_folders import RunFolders

INTERRUPTED = 130  # what shells report for Ctrl-C

T = TypeVar("T")


def add_run_arguments(parser: argparse.ArgumentParser, *, out: str, example: str) -> None:
    """Declare where the run goes (called `out` in the help), `--set`, `--resume` and `--force`."""
    parser.add_argument("--out", type=Path, required=True, metavar=out, help="the new run")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"change one key of the recipe, such as {example}",
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    either.add_argument(
        "--force", action="store_true", help="replace an existing run, or begin anew"
    )


def read_once(read: Callable[[], T]) -> T:
    """Read the input, in each process; of several, one says what is wrong with it."""
    from edge.cli.progress import is_main_process

    try:
        return read()
    except EdgeError as error:
        if is_main_process():
            raise
        sys.exit(error.exit_status)


def run_training(
    arguments: argparse.Namespace,
    folders: RunFolders,
    recipe: Recipe,
    train: Callable[[Journal, Accelerator], RunRecord],
) -> RunRecord | None:
    """Make room for the run and train; None where Ctrl-C stopped it: what is saved was said."""
    from distill.training.processes import accelerator_for, on_main
    from distill.training.run_folders import RECIPE_FILE, make_room, only_writer, saved_text
    from edge.cli.progress import is_main_process
    from edge.cli.training_display import journal_for

    accelerator = accelerator_for(recipe.train)
    room = {"resume": arguments.resume, "force": arguments.force}
    on_main(accelerator, lambda: make_room(folders, recipe, **room))
    with contextlib.ExitStack() as held:
        on_main(accelerator, lambda: held.enter_context(only_writer(folders)))
        try:
            record = train(journal_for(folders.unfinished), accelerator)
        except KeyboardInterrupt:
            if is_main_process():
                begun = (folders.unfinished / RECIPE_FILE).is_file()
                how = f"{saved_text(folders, recipe)}. Go on with the same command and --resume."
                say(f"edge: stopped: {how if begun else 'nothing had begun.'}")
            return None
    accelerator.end_training()
    return record


def tell_threshold(record: RunRecord) -> None:
    """Print the threshold and what stands behind it."""
    rule = record.spec.rule
    assert rule is not None
    print(
        f"threshold {rule.threshold.value:.4f}, from {rule.threshold.normals} held-out normal "
        f"parts under a false-alarm budget of {rule.threshold.false_alarm_budget:.2%}"
    )
