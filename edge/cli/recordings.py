"""`edge recordings show`: what is in a recording, oddities included."""

from __future__ import annotations

import argparse
from pathlib import Path

_SHOWN_ODDITIES = 5  # of each kind; all of them with --json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `edge recordings show`."""
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    show = actions.add_parser("show", help="counts, sizes, sensor ranges and every oddity")
    show.add_argument("recording", metavar="REC", type=Path)
    show.add_argument("--json", action="store_true", help="everything, as one JSON object")
    show.add_argument("--picture", metavar="FILE.png", type=Path, help="also draw a contact sheet")
    show.add_argument("--force", action="store_true", help="replace an existing --picture")


def run(arguments: argparse.Namespace) -> int:
    """Survey the recording and print it."""
    import msgspec

    from edge.artefact import check_free, new_file
    from edge.cli.progress import Progress
    from edge.cli.survey_text import survey_lines
    from edge.recording.contact_sheet import PNG_MAGIC, contact_sheet
    from edge.recording.format import Recording
    from edge.recording.survey import survey_of

    if arguments.picture is not None:
        check_free(arguments.picture, force=arguments.force, magic=PNG_MAGIC)
    recording = Recording.open(arguments.recording)
    survey = survey_of(recording, Progress("reading"))
    if arguments.picture is not None:
        with new_file(arguments.picture, force=arguments.force, magic=PNG_MAGIC) as partial:
            contact_sheet(recording).save(partial, format="PNG")
    if arguments.json:
        print(msgspec.json.encode(survey).decode())
    else:
        print("\n".join(survey_lines(survey, _SHOWN_ODDITIES)))
    return 0
