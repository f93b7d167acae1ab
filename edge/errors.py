"""The error tree, split by who can mend it.

    EdgeError
    |-- AnswerIsNo      exit 1: the command ran, and the answer is no
    |-- InputError      exit 2: a file, an option or a value that a person gave is wrong
    |   `-- UnfitSample         one sample that the model must not judge (NaN, wrong shape)
    `-- MachineError    exit 3: this machine lacks something (a package, a broker, disk space)

Every error is one paragraph for a person: where, what was expected, what was found, what to do.
The four parts are required, so no error can be raised without its next step. `edge.cli.main`
prints `EdgeError` and nothing else: any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Callable, Iterable


class EdgeError(Exception):
    """Something a person can mend. See the module's tree for which kind to raise."""

    exit_status = 1

    def __init__(self, *, where: object, expected: str, found: str, do: str) -> None:
        self.where = str(where)
        self.expected = expected
        self.found = found
        self.do = do
        super().__init__(where, expected, found, do)

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, found {self.found}. {self.do}"

    def __reduce__(self) -> tuple[Callable[..., EdgeError], tuple[object, ...]]:
        """Let the error cross from a worker process, which keyword-only parts would prevent."""
        return _rebuilt, (type(self), self.where, self.expected, self.found, self.do)


class AnswerIsNo(EdgeError):
    """The command did its work and the answer is no: a bundle is not whole, parity failed."""

    exit_status = 1


class InputError(EdgeError):
    """A file, an option or a value that a person gave is wrong."""

    exit_status = 2


class UnfitSample(InputError):
    """One sample that no model may judge: wrong shape, NaN or infinite readings."""


class MachineError(EdgeError):
    """This machine lacks something: a package, a broker, disk space, a right."""

    exit_status = 3


def _rebuilt(kind: type[EdgeError], where: object, expected: str, found: str, do: str) -> EdgeError:
    return kind(where=where, expected=expected, found=found, do=do)


def nearest_hint(wrong: str, known: Iterable[str]) -> str:
    """Return `Did you mean 'x'?` for the closest known word, else the list of known words."""
    words = sorted(known)
    close = difflib.get_close_matches(wrong, words, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return "Known: " + ", ".join(words) + "." if words else "Nothing is known here."


def signal_name(number: int) -> str:
    """Name the signal that ended a process; those of real time have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
