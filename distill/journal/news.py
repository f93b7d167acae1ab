"""What a training run tells while it goes on, and who listens.

The loop knows the protocol `Journal` and nothing else. `edge.cli` passes listeners in: a live
display for a person, and `FileJournal` (`journal_file.py`) for `journal.jsonl`, TensorBoard and the
picture of the curves. Only the main process of a run has a journal that does anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import msgspec

from distill.students.expert_use import ExpertUse


class StageNews(msgspec.Struct, frozen=True, tag_field="kind", tag="stage"):
    """A stage begins, or goes on where a run that was stopped had been saved."""

    stage: str
    number: int  # from 1
    stages: int
    step: int  # steps of this stage that are done already: 0, or what a resumed run had saved
    steps: int  # of this stage in all
    epochs: int
    weights: dict[str, float] = {}  # of each loss in the total; one without a weight is not learned


class StepNews(msgspec.Struct, frozen=True, tag_field="kind", tag="step"):
    """One step of the optimizer was made. Numbers are plain floats, already on the CPU."""

    stage: str
    epoch: int  # within the stage, from 1
    step: int  # within the stage, from 1: this one is counted
    steps: int  # of the stage in all
    losses: dict[str, float]  # each part before its weight, by its name in the recipe
    total: float  # what is minimised
    learning_rate: float
    gradient_norm: float  # before it is clipped
    parts_per_second: float  # since the step that was told before this one


class EpochNews(msgspec.Struct, frozen=True, tag_field="kind", tag="epoch"):
    """An epoch is done. Its averages are over every step, told or not."""

    stage: str
    epoch: int  # within the stage, from 1
    step: int  # the last of it
    losses: dict[str, float]
    total: float
    parts_per_second: float
    experts: tuple[ExpertUse, ...] = ()  # of each block that has experts


class Journal(Protocol):
    """One that listens to a run."""

    def stage(self, news: StageNews, /) -> AbstractContextManager[object]:
        """Listen for as long as the stage is trained; what this opens, its end closes."""

    def step(self, news: StepNews, /) -> None:
        """Note a step. Not every step need be told."""

    def epoch(self, news: EpochNews, /) -> None:
        """Note the end of an epoch."""

    def saved(self, step: int, /) -> None:
        """Note that the stage's first `step` steps can no longer be lost."""


class AllOf:
    """Passes everything on to several listeners; to none, where nobody wants to know."""

    def __init__(self, journals: Sequence[Journal] = ()) -> None:
        self.journals = tuple(journals)

    @contextmanager
    def stage(self, news: StageNews, /) -> Iterator[None]:
        """Open all, and close them in the opposite order."""
        with ExitStack() as opened:
            for journal in self.journals:
                opened.enter_context(journal.stage(news))
            yield

    def step(self, news: StepNews, /) -> None:
        """Tell all."""
        for journal in self.journals:
            journal.step(news)

    def epoch(self, news: EpochNews, /) -> None:
        """Tell all."""
        for journal in self.journals:
            journal.epoch(news)

    def saved(self, step: int, /) -> None:
        """Tell all."""
        for journal in self.journals:
            journal.saved(step)
