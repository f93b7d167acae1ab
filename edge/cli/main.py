"""The `edge` command: find the module that owns a subcommand, and print errors for people.

Help must answer at once, so this file knows each command's name and one line about it, and a
command's module is imported only when that command is called.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from edge.errors import EdgeError, MachineError

INTERRUPTED = 130  # what shells report for Ctrl-C
OWN_PACKAGES = ("edge", "distill", "export", "device_agents")
DEVICE_PACKAGES = (
    "onnxruntime",
    "paho",
    "prometheus_client",
    "rich",
)  # what the extra `device` brings


@dataclass(frozen=True)
class Command:
    """One subcommand: the module in `edge.cli` that owns it, and its line in `edge --help`.

    The module defines `add_arguments(parser)`, and `run(arguments)` returning the exit status.
    """

    name: str
    module: str
    summary: str


COMMANDS = (
    Command("simulate", "simulate", "make a recording of a simulated line"),
    Command(
        "import",
        "importing",
        "make a recording from an image folder, an MVTec AD folder or kept pictures",
    ),
    Command("recordings", "recordings", "show what is in a recording, oddities included"),
    Command("distill", "distill", "train a student on a recording"),
    Command("adapt", "adapt", "take a run to another line by training few of its weights"),
    Command("evaluate", "evaluate", "measure a run or a bundle on a recording"),
    Command("export", "export", "turn a run into an INT8 bundle, with proof of parity"),
    Command("build", "build", "build a bundle's plan on the machine that will run it"),
    Command("bench", "bench", "measure a plan or a bundle: latency, its parts, memory, energy"),
    Command("verify", "verify", "check a bundle: digests, sizes, golden samples"),
    Command("replay", "replay", "walk a recording through the device's path, print inspections"),
    Command("agent", "agent", "run one of the station's agents: inspector, publisher or monitor"),
    Command("listen", "listen", "show what stations report over MQTT"),
    Command("schema", "schema", "write what stations say as JSON Schema and AsyncAPI files"),
    Command("units", "units", "write systemd units, alert rules and a dashboard for a station"),
    Command("doctor", "doctor", "check each part of a station, and say the next step"),
    Command("demo", "demo", "run the whole line once on a simulated recording"),
)


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0, or 1: the answer is no; 2: bad input; 3: the machine lacks."""
    words = sys.argv[1:] if argv is None else argv
    # torch's idle threads spin by default; where other programs share the cores, that makes it
    # many times slower (seen: 85 s instead of 10). It must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime calls nobody, see `engine`
    parser, module_name = _parser_for(words[0] if words else None)
    arguments = parser.parse_args(words)
    if module_name is None:
        parser.print_help()
        return 2
    try:
        with _ended_as_by_ctrl_c():
            status = _status_of(module_name, arguments)
        sys.stdout.flush()
    except EdgeError as error:
        print(f"edge: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("edge: stopped.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        return _status_of_failed_output(error)
    return status


@contextlib.contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, which takes away what is half written.

    Who runs until it is told to stop listens for both by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _status_of_failed_output(error: OSError) -> int:
    """A closed pipe ends quietly; a full disk behind what is written is the machine's lack."""
    if isinstance(error, BrokenPipeError):
        # The reader (head, less) closed early; Python would complain again while shutting down.
        sys.stderr.close()
        return 0
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        raise error  # a bug: whoever opens a file says what is wrong with it
    lack = MachineError(
        where=error.filename or "standard output",
        expected="room for what is written",
        found=str(error),
        do="Free some space, or send the output elsewhere.",
    )
    print(f"edge: {lack}", file=sys.stderr)
    return lack.exit_status


def _status_of(module_name: str, arguments: argparse.Namespace) -> int:
    """Run the command; a package that its extra would have brought is the machine's lack."""
    try:
        status: int = importlib.import_module(f"edge.cli.{module_name}").run(arguments)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in OWN_PACKAGES:
            raise  # a module of ours that is missing is a bug
        extra = "device" if package in DEVICE_PACKAGES else "host"
        raise MachineError(
            where=f"edge {arguments.command}",
            expected=f"the Python package '{package}'",
            found="none on this machine",
            do=f"Install it with: pip install 'orin-inspect[{extra}]'",
        ) from error
    return status


def _parser_for(word: str | None) -> tuple[argparse.ArgumentParser, str | None]:
    """Build the parser, with the arguments of the one command that `word` names."""
    parser = argparse.ArgumentParser(
        prog="edge",
        description="Distil, export and run visual + sensor inspection on NVIDIA Jetson Orin.",
        epilog="Exit status: 0 done; 1 it ran and the answer is no; 2 the input is wrong; "
        "3 the machine lacks something.",
    )
    parser.add_argument("--version", action="version", version=f"orin-inspect {_version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    called = None
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name, help=command.summary, description=command.summary
        )
        if command.name == word:
            called = command.module
            importlib.import_module(f"edge.cli.{called}").add_arguments(subparser)
    return parser, called


def _version() -> str:
    try:
        return version("orin-inspect")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
