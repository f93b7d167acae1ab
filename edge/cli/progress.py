"""What a person who waits is told, on standard error: which step is made, and how far it is.

A live bar on a terminal; elsewhere a line every few seconds, so that a log shows life too, and
nothing at all for what is done at once. Where a command runs as many processes, one of them shows.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

_FIRST_LINE_AFTER_S = 2.0
_LINE_EVERY_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """Call it with a sequence, and it passes the items on and shows how many are done."""

    title: str

    def __call__(self, items: Sequence[T], /) -> Iterable[T]:
        """Yield every item in order."""
        if not is_main_process():
            return items
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import track
            except ImportError:
                return _with_lines(items, self.title)
            console = Console(stderr=True)
            return track(items, self.title, console=console, transient=True)
        return _with_lines(items, self.title)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is being made, and afterwards how long it took."""
    started = time.monotonic()
    say(f"{title} ...")
    yield
    say(f"  {time.monotonic() - started:.1f} s")


def say(line: str) -> None:
    """Print a line on standard error at once."""
    print(line, file=sys.stderr, flush=True)


def typed(*words: object) -> str:
    """Return a command as a person can paste it, whatever its paths are called."""
    return shlex.join(map(str, words))


def is_main_process() -> bool:
    """Whether this process is the first, or only, one of those that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def _with_lines(items: Sequence[T], title: str) -> Iterator[T]:
    started = time.monotonic()
    due = started + _FIRST_LINE_AFTER_S
    for done, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now >= due:
            due = now + _LINE_EVERY_S
            left_s = (now - started) / (done + 1) * (len(items) - done - 1)
            print(f"{title}: {done + 1:,} of {len(items):,}, {left_s:.0f} s left", file=sys.stderr)
