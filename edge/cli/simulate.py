"""`edge simulate`: make a recording of a simulated line."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `edge simulate`."""
    parser.add_argument("--parts", metavar="N", type=int, default=300, help="(default: 300)")
    parser.add_argument("--out", metavar="REC", type=Path, required=True, help="the new recording")
    parser.add_argument(
        "--seed", metavar="S", type=int, default=0, help="the same seed gives the same bytes"
    )
    parser.add_argument(
        "--size", metavar="WxH", default="320x240", help="of the images (default: 320x240)"
    )
    parser.add_argument(
        "--defects",
        metavar="SHARE",
        type=float,
        default=0.4,
        help="share of defective parts; 0 gives normal parts only (default: 0.4)",
    )
    parser.add_argument(
        "--rate", metavar="PARTS_PER_SECOND", type=float, default=2.0, help="(default: 2)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing recording")


def run(arguments: argparse.Namespace) -> int:
    """Simulate, draw the overview, and say where to look."""
    from collections import Counter

    from edge.artefact import new_folder
    from edge.cli.importing import checked_rate
    from edge.cli.progress import Progress
    from edge.recording.contact_sheet import contact_sheet
    from edge.recording.format import HEADER_FILE
    from edge.simulate.line import LineOrder, simulate

    order = LineOrder(
        parts=arguments.parts,
        seed=arguments.seed,
        size=_size_from(arguments.size),
        defects=arguments.defects,
        parts_per_second=checked_rate(arguments.rate),
    )
    with new_folder(arguments.out, force=arguments.force, mark=HEADER_FILE) as partial:
        recording = simulate(order, partial, Progress("simulating"))
        contact_sheet(recording).save(partial / "overview.png")
    counts = Counter(row.label for row in recording.rows)
    labels = ", ".join(f"{counts[label]:,} {label}" for label in recording.header.classes)
    print(f"{arguments.out}: {len(recording.rows):,} simulated parts ({labels})")
    print(f"Look at {arguments.out / 'overview.png'}, or: edge recordings show {arguments.out}")
    return 0


def _size_from(text: str) -> tuple[int, int]:
    from edge.errors import InputError

    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise InputError(
            where="--size",
            expected="width and height in pixels, such as 320x240",
            found=f"'{text}'",
            do="Write both numbers with an x between them.",
        )
    return int(width), int(height)
