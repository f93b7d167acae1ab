"""`edge recordings show`: what is in a recording, oddities and a recipe's copies included."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from edge.recording.format import Recording

_SHOWN_ODDITIES = 5  # of each kind; all of them with --json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `edge recordings show`."""
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    show = actions.add_parser("show", help="counts, sizes, sensor ranges and every oddity")
    show.add_argument("recording", metavar="REC", type=Path)
    show.add_argument("--json", action="store_true", help="everything, as one JSON object")
    show.add_argument("--picture", metavar="FILE.png", type=Path, help="also draw a contact sheet")
    show.add_argument(
        "--augmented",
        metavar="RECIPE",
        help="draw training parts with the copies that this recipe makes of them",
    )
    show.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one key of that recipe, such as augment.shadow=0.3",
    )
    show.add_argument("--force", action="store_true", help="replace an existing --picture")


def run(arguments: argparse.Namespace) -> int:
    """Survey the recording and print it."""
    import msgspec

    from edge.artefact import check_free, new_file
    from edge.cli.progress import Progress
    from edge.cli.survey_text import survey_lines
    from edge.recording.contact_sheet import PNG_MAGIC
    from edge.recording.format import Recording
    from edge.recording.survey import survey_of

    _refuse_half_a_wish(arguments)
    if arguments.picture is not None:
        check_free(arguments.picture, force=arguments.force, magic=PNG_MAGIC)
    recording = Recording.open(arguments.recording)
    survey = survey_of(recording, Progress("reading"))
    if arguments.picture is not None:
        with new_file(arguments.picture, force=arguments.force, magic=PNG_MAGIC) as partial:
            _sheet(recording, arguments).save(partial, format="PNG")
    if arguments.json:
        print(msgspec.json.encode(survey).decode())
    else:
        print("\n".join(survey_lines(survey, _SHOWN_ODDITIES)))
    return 0


def _sheet(recording: Recording, arguments: argparse.Namespace) -> Image.Image:
    """Draw the recording, or what a recipe makes of its training parts."""
    if arguments.augmented is None:
        from edge.recording.contact_sheet import contact_sheet

        return contact_sheet(recording)
    from distill.augment.copies_sheet import copies_sheet
    from distill.dataset import training_parts
    from distill.recipe import load_recipe

    recipe = load_recipe(arguments.augmented, tuple(arguments.overrides))
    return copies_sheet(training_parts(recording, recipe), recipe)


def _refuse_half_a_wish(arguments: argparse.Namespace) -> None:
    from edge.errors import InputError

    if arguments.augmented is not None and arguments.picture is None:
        raise InputError(
            where="--augmented",
            expected="--picture FILE.png beside it, to draw the copies on",
            found="none",
            do="Add --picture copies.png.",
        )
    if arguments.overrides and arguments.augmented is None:
        raise InputError(
            where="--set",
            expected="--augmented RECIPE beside it, whose keys it changes",
            found="none",
            do="Add --augmented tiny, or another recipe.",
        )
