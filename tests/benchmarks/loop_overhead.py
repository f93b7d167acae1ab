"""The training loop beside bare forward, backward and optimizer step, and the reading of targets.

    python -m tests.benchmarks loop_overhead

The real loop trains a student of `tiny` with its journal, its checks and its saved states. After
each of its steps, on the same batch and a student of the same weights, the bare step is made and
timed, so that both have the same minutes of this machine; at the end both must have had the same
losses. The loop reads its batches in its own process (`train.workers` 0), which is its dearest way;
what of its time that reading is, is measured apart.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from distill.augment.copies import Copies
from distill.dataset import training_parts
from distill.journal.journal_file import FileJournal
from distill.journal.news import EpochNews, Journal, StageNews, StepNews
from distill.recipe import Recipe, Stage, load_recipe
from distill.targets.compute import targets_in
from distill.train import fresh_student
from distill.training.batches import Batches
from distill.training.learner import Learner
from distill.training.loop import Run, run_stage
from distill.training.processes import accelerator_for
from distill.training.saved_state import Position, SavedStates
from distill.training.schedule import seed_for, set_learning_rate
from distill.training.standardisation import fit_standardisation
from edge.recording.format import Recording
from edge.simulate.line import LineOrder, simulate

LIMIT = 1.05
# No gradient is clipped, so that the bare step, which does not clip, gets the same weights.
SETTINGS = ("targets.copies=1", "train.gradient_limit=1e9", "train.min_steps_per_epoch=20")
PARTS, EPOCHS = 80, 6
QUICK_EPOCHS = 1
_WARM = 5  # steps of each that are not counted
_THREADS = 2


@dataclass
class BareSteps:
    """A journal that makes the bare step on the batch that the loop has just worked through."""

    files: Journal
    learner: Learner
    batches: Batches
    recipe: Recipe
    stage_recipe: Stage
    loop_ms: list[float] = field(default_factory=list)
    bare_ms: list[float] = field(default_factory=list)
    reading_ms: list[float] = field(default_factory=list)
    most_difference: float = 0.0  # between the losses of the two
    _began_s: float = 0.0  # when the loop last got the processor

    def __post_init__(self) -> None:
        self.learner.train()
        rate, decay = self.stage_recipe.learning_rate, self.recipe.train.weight_decay
        self.optimizer = torch.optim.AdamW(self.learner.learning(), lr=rate, weight_decay=decay)

    @contextmanager
    def stage(self, news: StageNews, /) -> Iterator[None]:
        with self.files.stage(news):
            self._began_s = time.perf_counter()
            yield

    def step(self, news: StepNews, /) -> None:
        self.files.step(news)
        self.loop_ms.append((time.perf_counter() - self._began_s) * 1e3)
        started = time.perf_counter()
        epoch, step = divmod(news.step - 1, self.batches.steps_per_epoch)
        batch = self.batches.piece(epoch, step, 0, 1)
        self.reading_ms.append((time.perf_counter() - started) * 1e3)
        torch.manual_seed(seed_for(self.recipe.seed, 0, news.step - 1, 0))
        set_learning_rate(self.optimizer, self.stage_recipe, news.step - 1, news.steps)
        started = time.perf_counter()
        total, _ = self.learner(batch)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.bare_ms.append((time.perf_counter() - started) * 1e3)
        self.most_difference = max(self.most_difference, abs(total.item() - news.total))
        self._began_s = time.perf_counter()

    def epoch(self, news: EpochNews, /) -> None:
        self.files.epoch(news)

    def saved(self, step: int, /) -> None:
        self.files.saved(step)


def run(*, quick: bool = False) -> dict:
    """Print the ratios. Kept is that both did the same; a time is never a promise."""
    torch.set_num_threads(_THREADS)
    recipe = load_recipe("tiny", (*SETTINGS, f"train.epochs={QUICK_EPOCHS if quick else EPOCHS}"))
    with tempfile.TemporaryDirectory() as name:
        journal = _trained(recipe, Path(name))
    figures = _figures_of(journal)
    print(f"\nthe loop's step of '{recipe.name}', batch {recipe.train.batch}, {_THREADS} threads")
    for key, value in figures.items():
        print(f"  {key:34} {value:10.4g}")
    ratio = figures["ratio, reading apart"]
    print(f"  the limit of {LIMIT} is {'kept' if ratio <= LIMIT else 'exceeded'} on this machine")
    same = figures["largest difference of a loss"] < 1e-4
    print(f"  {'kept  ' if same else 'BROKEN'} loop and bare steps had the same losses")
    return {**figures, "kept": same}


def _trained(recipe: Recipe, folder: Path) -> BareSteps:
    simulate(LineOrder(parts=PARTS), folder / "rec")
    (stage,) = recipe.all_stages()
    parts = training_parts(Recording.open(folder / "rec"), recipe)
    student = fresh_student(parts, recipe)
    targets = targets_in(folder / "targets", parts, recipe, stage, student, _silent)
    batches = Batches(Copies(parts, recipe), targets, recipe, stage)
    fit_standardisation(student, targets, batches.copies, first_stage=True)
    files = FileJournal(folder / "run", print)
    learner = Learner(copy.deepcopy(student), 0, stage.loss)
    journal = BareSteps(files, learner, batches, recipe, stage)
    states = SavedStates(folder / "run" / "state")
    own = Run(recipe, accelerator_for(recipe.train), states, journal, folder / "run")
    run_stage(own, student, batches, Position())
    return journal


def _figures_of(journal: BareSteps) -> dict[str, float]:
    """A ratio is the median of those of neighbours in time, which a busy minute hits alike."""
    loop, bare = np.array(journal.loop_ms[_WARM:]), np.array(journal.bare_ms[_WARM:])
    reading = np.array(journal.reading_ms[_WARM:])
    return {
        "steps": float(len(loop)),
        "bare step, p50 ms": float(np.median(bare)),
        "loop's step with reading, p50 ms": float(np.median(loop)),
        "reading a batch, p50 ms": float(np.median(reading)),
        "ratio, reading apart": float(np.median((loop - reading) / bare)),
        "ratio, with reading": float(np.median(loop / bare)),
        "ratio of sums, saves and epochs too": float(loop.sum() / bare.sum()),
        "reading over bare step": float(np.median(reading / bare)),
        "largest difference of a loss": journal.most_difference,
    }


def _silent(_title: str):
    return lambda items: items
