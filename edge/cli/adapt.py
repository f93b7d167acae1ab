"""`edge adapt`: take a run to another line by training few of its weights."""

from __future__ import annotations

import argparse
import sys
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

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.adaptation.order import AdaptOrder
    from distill.checkpoint import RunRecord
    from distill.journal.news import Journal

_GOT_WORSE = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `edge adapt`."""
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="the run to begin with")
    parser.add_argument(
        "recording",
        metavar="REC",
        type=Path,
        help="parts of the other line; 5 to 50 in its split train: few-shot",
    )
    add_run_arguments(parser, out="RUN2", example="adapt.epochs=10")


def run(arguments: argparse.Namespace) -> int:
    """Adapt, then say what was and what could not be learned."""
    from distill.adaptation.adapt import adapt
    from distill.training.run_folders import RunFolders
    from edge.cli.progress import Progress, is_main_process

    order = read_once(lambda: _order(arguments))
    folders = RunFolders(arguments.out, learns_from=order.name)

    def train(journal: Journal, accelerator: Accelerator) -> RunRecord:
        if is_main_process():
            print(_beginning(order), file=sys.stderr)
        return adapt(order, folders, Progress, journal, accelerator)

    record = run_training(arguments, folders, order.recipe, train)
    if record is None:
        return INTERRUPTED
    if is_main_process():
        _tell(record, arguments)
        _tell_calibration(len(order.parts), arguments)
    return _GOT_WORSE if _did_not_help(record) else 0


def _did_not_help(record: RunRecord) -> bool:
    """Tell whether held-out parts say so: a script must not ship such a run unseen."""
    from distill.adaptation.not_learned import improved

    adapted = record.adapted
    if adapted is None or adapted.before is None or adapted.after is None:
        return False
    return not improved(adapted.before, adapted.after)


def _order(arguments: argparse.Namespace) -> AdaptOrder:
    """Read run and recording."""
    from distill.adaptation.order import order_for
    from edge.recording.format import Recording

    recording = Recording.open(arguments.recording)
    return order_for(arguments.run_folder, recording, tuple(arguments.overrides))


def _beginning(order: AdaptOrder) -> str:
    from distill.adaptation.order import FEW_SHOT_PARTS

    mode = "few-shot" if order.few_shot else "the ordinary way"
    return f"adapting to {order.part_count} parts, {mode} (few-shot: up to {FEW_SHOT_PARTS})"


def _tell(record: RunRecord, arguments: argparse.Namespace) -> None:
    adapted = record.adapted
    assert adapted is not None
    print(
        f"{arguments.out}: {arguments.run_folder} adapted to {adapted.parts} parts"
        f"{', few-shot' if adapted.few_shot else ''}; LoRA of rank {adapted.rank} and the heads, "
        f"{adapted.trained_share:.2%} of the parameters, merged"
    )
    tell_threshold(record)
    for gap in adapted.not_learned:
        print(f"not learned: {gap}")
    for remark in record.remarks:
        print(f"note: {remark}")
    evaluate = ("edge", "evaluate", arguments.out, arguments.recording, "--split", "test")
    print(f"Measure it with: {typed(*evaluate)}")


def _tell_calibration(samples: int, arguments: argparse.Namespace) -> None:
    """Say what to export with, where the parts are too few to set INT8's ranges by."""
    from export.calibration import MINIMUM_SAMPLES, MORE_PARTS

    if samples < MINIMUM_SAMPLES:
        print(
            f"note: INT8 needs {MINIMUM_SAMPLES} samples to calibrate on, and "
            f"{arguments.recording} has {samples} in its train split. Export it with "
            f"--calibration and {MORE_PARTS}. It need not be the recording that the run was "
            "adapted to"
        )
