"""How a training run goes, on standard error: a live display on a terminal, else a line at times.

It is a listener of the run (`distill.journal.news.Journal`), and nothing in training knows it.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edge.cli.progress import is_main_process, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from distill.journal.news import EpochNews, Journal, StageNews, StepNews

_LINE_EVERY_S = 10.0
_FIRST_LINE_AFTER_S = 2.0
_DRAWN_PER_S = 2
_BAR_WIDTH = 40
_TREND_POINTS = 24
_BARS = "▁▂▃▄▅▆▇█"


def journal_for(folder: Path) -> Journal:
    """Return what listens to the run of `folder`: its files and the display.

    In a process of many that is not the first, nobody listens.
    """
    from distill.journal.journal_file import FileJournal
    from distill.journal.news import AllOf

    if not is_main_process():
        return AllOf()
    return AllOf((FileJournal(folder, say), display()))


def display() -> Journal:
    """Return a live display where standard error is a terminal and `rich` is there, else lines."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        try:
            import rich  # noqa: F401
        except ImportError:
            return Lines()
        return LiveDisplay()
    return Lines()


class Trend:
    """A series of any length, as at most `_TREND_POINTS` means of equal stretches."""

    def __init__(self) -> None:
        self.last = 0.0
        self._means: list[float] = []
        self._stretch = 1  # values per mean
        self._open: list[float] = []

    def add(self, value: float) -> None:
        """Take the next value; where the room ends, every two stretches become one."""
        self.last = value
        self._open.append(value)
        if len(self._open) == self._stretch:
            self._means = [*self._means, sum(self._open) / self._stretch]
            self._open = []
        if len(self._means) == _TREND_POINTS:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means = [(a + b) / 2 for a, b in pairs]
            self._stretch *= 2

    def bars(self) -> str:
        """Draw it from its lowest to its highest; what is not finite is a gap."""
        means = self._means
        finite = [mean for mean in means if math.isfinite(mean)]
        low, span = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)
        heights = [(mean - low) / span if span else 0.0 for mean in means]
        return "".join(
            _BARS[round(height * (len(_BARS) - 1))] if math.isfinite(height) else " "
            for height in heights
        )


class Course:
    """What both forms show of one stage: where it is, how fast, and how the losses have moved."""

    def __init__(self, stage: StageNews) -> None:
        self.stage = stage
        self.news: StepNews | None = None
        self.trends: dict[str, Trend] = {}
        self._began_s = time.monotonic()
        self._saved: tuple[int, float] | None = None  # which step, and when

    def step(self, news: StepNews) -> None:
        """Take a step. A loss without a weight, or that was 0 so far, is not being learned."""
        self.news = news
        for name, value in {"total": news.total, **news.losses}.items():
            learned = value and self.stage.weights.get(name, 1.0)
            if name in self.trends or learned or name == "total":
                self.trends.setdefault(name, Trend()).add(value)

    def saved(self, step: int) -> None:
        """Note that so many steps are safe."""
        self._saved = (step, time.monotonic())

    def took_s(self) -> float:
        """Seconds since the stage began in this process."""
        return time.monotonic() - self._began_s

    def where(self) -> str:
        """Name the stage, and the epoch and the step of it."""
        name = f"stage '{self.stage.stage}' ({self.stage.number} of {self.stage.stages})"
        if self.news is None:
            return f"{name}, {self.stage.steps:,} steps, the first is under way"
        return (
            f"{name}, epoch {self.news.epoch:,} of {self.stage.epochs:,}, "
            f"step {self.news.step:,} of {self.stage.steps:,}"
        )

    def speed(self) -> str:
        """Parts per second, and the time left at this process's mean speed in the stage so far."""
        if self.news is None:
            return ""
        done = self.news.step - self.stage.step
        left_s = self.took_s() / max(done, 1) * (self.stage.steps - self.news.step)
        of_what = "" if self.stage.number == self.stage.stages else " in this stage"
        return f"{self.news.parts_per_second:.3g} parts/s, {duration(left_s)} left{of_what}"

    def save(self) -> str:
        """What a kill would not cost."""
        if self._saved is not None:
            step, when_s = self._saved
            return f"saved at step {step:,}, {duration(time.monotonic() - when_s)} ago"
        return f"resumed at step {self.stage.step:,}" if self.stage.step else "not saved yet"


class Lines:
    """A line every few seconds, and nothing of a stage that is done at once."""

    def __init__(self) -> None:
        self._course: Course | None = None
        self._due_s = 0.0

    @contextmanager
    def stage(self, news: StageNews, /) -> Iterator[None]:
        """Begin to write soon."""
        self._course = Course(news)
        self._due_s = time.monotonic() + _FIRST_LINE_AFTER_S
        yield

    def step(self, news: StepNews, /) -> None:
        """Write a line where one is due."""
        assert self._course is not None
        self._course.step(news)
        now_s = time.monotonic()
        if now_s >= self._due_s or (
            news.step == news.steps and self._course.took_s() > _LINE_EVERY_S
        ):
            self._due_s = now_s + _LINE_EVERY_S
            losses = ", ".join(f"{n} {t.last:.3g}" for n, t in self._course.trends.items())
            parts = (self._course.where(), losses, self._course.speed(), self._course.save())
            say("; ".join(parts))

    def epoch(self, news: EpochNews, /) -> None:
        """Say nothing: the lines of the steps show the losses."""

    def saved(self, step: int, /) -> None:
        """Remember it for the next line."""
        assert self._course is not None
        self._course.saved(step)


class LiveDisplay:
    """A few lines on a terminal that change in place and vanish with the stage's end."""

    def __init__(self) -> None:
        self._course: Course | None = None
        self._bars = True  # whether the terminal can show them

    @contextmanager
    def stage(self, news: StageNews, /) -> Iterator[None]:
        """Show the stage for as long as it is trained."""
        from rich.console import Console
        from rich.live import Live

        self._course = Course(news)
        console = Console(stderr=True)
        self._bars = not console.options.ascii_only
        with Live(
            console=console,
            get_renderable=self._drawn,
            refresh_per_second=_DRAWN_PER_S,
            transient=True,
        ):
            yield

    def step(self, news: StepNews, /) -> None:
        """Take it; it is seen with the next drawing."""
        assert self._course is not None
        self._course.step(news)

    def epoch(self, news: EpochNews, /) -> None:
        """Show nothing more: the steps show the losses."""

    def saved(self, step: int, /) -> None:
        """Show that so many steps are safe."""
        assert self._course is not None
        self._course.saved(step)

    def _drawn(self) -> RenderableType:
        """Called by rich's own thread, some times a second."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        course = self._course
        assert course is not None
        losses = Table.grid(padding=(0, 2))
        for name, trend in list(course.trends.items()):
            losses.add_row("  " + name, f"{trend.last:.4g}", trend.bars() if self._bars else "")
        done = course.stage.step if course.news is None else course.news.step
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=course.stage.steps, completed=done, width=_BAR_WIDTH), course.speed()
        )
        return Group(Text(course.where()), bar, losses, Text(course.save()))


def duration(seconds: float) -> str:
    """Say a time as a person reads it: `42 s`, `3 min 20 s`, `5 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
