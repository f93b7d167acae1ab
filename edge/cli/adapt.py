"""`edge adapt`: take a run to another line by training few of its weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import EdgeError

if TYPE_CHECKING:
    from distill.adaptation.order import AdaptOrder
    from distill.checkpoint import RunRecord

_GOT_WORSE = 1
_INTERRUPTED = 130  # what shells report for Ctrl-C


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `edge adapt`."""
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="the run to begin with")
    parser.add_argument(
        "recording",
        metavar="REC",
        type=Path,
        help="parts of the other line; 5 to 50 in its split train: few-shot",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN2", help="the new run")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one key of the run's recipe, such as adapt.epochs=10",
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="go on with one that was stopped")
    either.add_argument(
        "--force", action="store_true", help="replace an existing run, or begin anew"
    )


def run(arguments: argparse.Namespace) -> int:
    """Adapt, then say what was and what could not be learned."""
    from distill.adaptation.adapt import adapt
    from distill.training.processes import accelerator_for, on_main
    from distill.training.run_folders import RunFolders, make_room
    from edge.cli.progress import Progress, is_main_process
    from edge.cli.training_display import journal_for

    order = _order(arguments)
    folders = RunFolders(arguments.out, learns_from=order.name)
    accelerator = accelerator_for(order.recipe.train)
    room = {"resume": arguments.resume, "force": arguments.force}
    on_main(accelerator, lambda: make_room(folders, order.recipe, **room))
    if is_main_process():
        print(_beginning(order), file=sys.stderr)
    try:
        journal = journal_for(folders.unfinished)
        record = adapt(order, folders, Progress, journal, accelerator)
    except KeyboardInterrupt:
        if is_main_process():
            print(
                "edge: stopped; all but the last few seconds is saved. Go on with the same command "
                "and --resume.",
                file=sys.stderr,
            )
        return _INTERRUPTED
    accelerator.end_training()
    if is_main_process():
        _tell(record, arguments)
    return _GOT_WORSE if _did_not_help(record) else 0


def _did_not_help(record: RunRecord) -> bool:
    """Tell whether held-out parts say so: a script must not ship such a run unseen."""
    from distill.adaptation.not_learned import improved

    adapted = record.adapted
    if adapted is None or adapted.before is None or adapted.after is None:
        return False
    return not improved(adapted.before, adapted.after)


def _order(arguments: argparse.Namespace) -> AdaptOrder:
    """Read run and recording. Of several processes, one says what is wrong with them."""
    from distill.adaptation.order import order_for
    from edge.cli.progress import is_main_process
    from edge.recording.format import Recording

    try:
        recording = Recording.open(arguments.recording)
        return order_for(arguments.run_folder, recording, tuple(arguments.overrides))
    except EdgeError as error:
        if is_main_process():
            raise
        sys.exit(error.exit_status)


def _beginning(order: AdaptOrder) -> str:
    from distill.adaptation.order import FEW_SHOT_PARTS

    mode = "few-shot" if order.few_shot else "the ordinary way"
    return f"adapting to {order.part_count} parts, {mode} (few-shot: up to {FEW_SHOT_PARTS})"


def _tell(record: RunRecord, arguments: argparse.Namespace) -> None:
    adapted, rule = record.adapted, record.spec.rule
    assert adapted is not None
    assert rule is not None
    print(
        f"{arguments.out}: {arguments.run_folder} adapted to {adapted.parts} parts"
        f"{', few-shot' if adapted.few_shot else ''}; LoRA of rank {adapted.rank} and the heads, "
        f"{adapted.trained_share:.2%} of the parameters, merged"
    )
    print(
        f"threshold {rule.threshold.value:.4f}, from {rule.threshold.normals} held-out normal "
        f"parts under a false-alarm budget of {rule.threshold.false_alarm_budget:.2%}"
    )
    for gap in adapted.not_learned:
        print(f"not learned: {gap}")
    for remark in record.remarks:
        print(f"note: {remark}")
    print(f"Measure it with: edge evaluate {arguments.out} {arguments.recording} --split test")
