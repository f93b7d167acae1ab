"""`edge schema`: write what stations say as JSON Schema and AsyncAPI, for those who read it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define `edge schema`."""
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="a new folder for asyncapi.json and one KIND.schema.json for each kind of message",
    )
    parser.add_argument("--force", action="store_true", help="replace what an earlier run wrote")


def run(arguments: argparse.Namespace) -> int:
    """Write the documents, all or none."""
    from edge.artefact import new_folder
    from edge.schema import ASYNCAPI_FILE, write_schemas

    with new_folder(arguments.out, force=arguments.force, mark=ASYNCAPI_FILE) as folder:
        names = write_schemas(folder)
    for name in names:
        print(arguments.out / name)
    return 0
