"""`edge import`: make a recording from an image folder, the MVTec AD layout, or kept pictures."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `edge import folder`, `edge import mvtec` and `edge import kept`."""
    kinds = parser.add_subparsers(metavar="KIND", dest="kind", required=True)
    folder = kinds.add_parser(
        "folder", help="a folder with metadata.csv, .jsonl or .parquet, a row per sample"
    )
    _add_common(folder)
    folder.add_argument(
        "--sensor",
        metavar="NAME:UNIT:HZ",
        nargs="+",
        action="extend",
        default=[],
        help="a channel of the sensor files, in the files' order (drive_end:g:12000)",
    )
    folder.add_argument("--ok", metavar="LABEL", help="the normal class (default: ok, else good)")
    _add_common(kinds.add_parser("mvtec", help="train/good, test/<defect>, ground_truth/<defect>"))
    _add_common(
        kinds.add_parser(
            "kept", help="the pictures that a station kept (OUTBOX.pictures), to relabel"
        )
    )


def run(arguments: argparse.Namespace) -> int:
    """Import, then say what came and what is odd about it."""
    from device_agents.outbox.kept_recording import advice_for, recording_of_kept
    from edge.artefact import new_folder
    from edge.cli.progress import Progress
    from edge.cli.survey_text import oddity_lines
    from edge.recording.folder import FolderImport, channels_from_texts, import_folder
    from edge.recording.format import HEADER_FILE
    from edge.recording.mvtec import import_mvtec
    from edge.recording.survey import survey_of

    source, out = arguments.source, arguments.out
    _check_apart(source, out)
    with new_folder(out, force=arguments.force, mark=HEADER_FILE) as partial:
        copying = Progress("copying")
        if arguments.kind == "folder":
            channels = channels_from_texts(arguments.sensor)
            order = FolderImport(source, channels, arguments.ok, checked_rate(arguments.rate))
            recording, remarks = import_folder(order, partial, copying)
        elif arguments.kind == "kept":
            rate = checked_rate(arguments.rate)
            recording, remarks = recording_of_kept(source, partial, rate, copying)
        else:
            recording, remarks = import_mvtec(
                source, partial, checked_rate(arguments.rate), copying
            )
        survey = survey_of(recording, Progress("checking"))
    print(f"{out}: {survey.samples:,} samples of {survey.parts:,} parts")
    for remark in remarks:
        print(f"note: {remark}")
    for line in oddity_lines(survey, limit=0):
        print(line)
    print(f"Look at it with: edge recordings show {out}")
    if arguments.kind == "kept":
        print(advice_for(recording, out))
    return 0


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DIR", type=Path, help="the folder; it is only read")
    parser.add_argument("--out", metavar="REC", type=Path, required=True, help="the new recording")
    parser.add_argument(
        "--rate",
        metavar="PARTS_PER_SECOND",
        type=float,
        default=1.0,
        help="the line's pace when the recording is played back (default: 1)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing recording")


def checked_rate(rate: float) -> float:
    """Hold --rate against reason. Raises InputError."""
    from edge.errors import InputError

    if not 0.0 < rate <= 1e6:  # also refuses NaN
        raise InputError(
            where="--rate",
            expected="parts per second, above 0",
            found=f"{rate:g}",
            do="Give the pace of the line, such as --rate 2.",
        )
    return rate


def _check_apart(source: Path, out: Path) -> None:
    """Refuse to write over the originals."""
    from edge.errors import InputError

    if source.resolve().is_relative_to(out.resolve()):
        raise InputError(
            where=out,
            expected="an output apart from the originals",
            found=f"the folder that holds {source}",
            do="Choose another --out.",
        )
