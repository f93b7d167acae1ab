"""One training step of the largest student, by the real loop: does it fit this machine?

    python -m tests.benchmarks big_step

Two steps (the second one has Adam's moments beside the gradient) of `600m` as its recipe says, on
batches of 2 in pieces of 1, made up at the real size. The trained student is then saved and loaded
as between two stages, and as a run's own weights, and must give the very same outputs. It runs in a
process of its own, whose highest memory is what is told.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from distill.checkpoint import WEIGHTS_FILE, save_whole
from distill.journal.news import EpochNews, StageNews, StepNews
from distill.recipe import Recipe, load_recipe
from distill.students.student import Student
from distill.training.batches import Batch
from distill.training.loop import Run, run_stage
from distill.training.losses import Lesson
from distill.training.processes import accelerator_for
from distill.training.saved_state import Position, SavedStates
from tests.benchmarks.fresh_students import (
    CHANNELS,
    CLASSES,
    READINGS,
    inputs_for,
    parameters_m,
    spec_for,
)

LIMIT_GB = 20.0
STEPS = 2
SETTINGS = ("train.batch=2", "train.accumulate=2", "train.epochs=1", "train.save_every_s=1e9")


class MadeUp:
    """Batches of random numbers, of the size that the real ones have."""

    steps_per_epoch = STEPS

    def __init__(self, recipe: Recipe, student: Student) -> None:
        self.recipe, self.student = recipe, student

    def piece(self, epoch: int, step: int, piece: int, pieces: int) -> Batch:
        cells, size = self.student.cells, self.recipe.teacher.feature_size
        one = torch.full((1,), 1.0)
        teachers = range(len(self.recipe.teacher.backbones))
        lesson = Lesson(
            label_B=torch.tensor([step % len(CLASSES)]),
            label_weight_B=one,
            soft_BK=torch.full((1, len(CLASSES)), 1.0 / len(CLASSES)),
            soft_weight_B=one,
            score_B=0.5 * one,
            score_weight_B=one,
            map_Bhw=torch.rand(1, *self.student.grid),
            map_weight_B=one,
            features=tuple(torch.randn(1, cells, size) for _ in teachers),
            summaries=tuple(torch.randn(1, size) for _ in teachers),
            seen_weight_B=one,
            window_BF=None,
            window_weight_B=one,
            present_B2=torch.ones(1, 2),
        )
        stem_BGS = torch.randn(1, cells, self.student.stem.size)
        window_BCT = torch.randn(1, len(CHANNELS), READINGS)
        return Batch((f"made up {piece}",), stem_BGS, window_BCT, lesson)


class Clock:
    """A journal that notes when each step was done, and how much memory it had taken by then."""

    def __init__(self) -> None:
        self.at_s, self.peak_gb, self.totals = [time.perf_counter()], [], []

    def stage(self, news: StageNews, /) -> nullcontext[None]:
        self.at_s = [time.perf_counter()]
        return nullcontext()

    def step(self, news: StepNews, /) -> None:
        self.at_s.append(time.perf_counter())
        self.peak_gb.append(peak_gb())
        self.totals.append(news.total)

    def epoch(self, news: EpochNews, /) -> None: ...

    def saved(self, step: int, /) -> None: ...


def run(*, recipe: str = "600m") -> dict:
    """Print memory and time; kept is that outputs are the same and that the step fits."""
    command = [sys.executable, "-m", "tests.benchmarks.big_step", recipe]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(child.stderr[-2000:])
    figures = json.loads(child.stdout.splitlines()[-1])
    print(f"\none training step of '{recipe}', {figures['parameters_m']:.0f} M parameters, batch 1")
    for key, value in figures.items():
        print(f"  {key:36} {value}")
    return figures


def measure(name: str) -> dict:
    """Do it in this process."""
    recipe = load_recipe(name, SETTINGS)
    started = time.perf_counter()
    torch.manual_seed(0)
    student = Student(spec_for(recipe), recipe)
    made_s = time.perf_counter() - started
    clock, batches = Clock(), MadeUp(recipe, student)
    with tempfile.TemporaryDirectory() as folder:
        states = SavedStates(Path(folder) / "state")
        own = Run(recipe, accelerator_for(recipe.train), states, clock, Path(folder))
        position = run_stage(own, student, batches, Position())
        after_stage_gb = peak_gb()
        before = outputs_of(student)
        loaded = Student(spec_for(recipe), recipe)
        states.load_weights(loaded, position)
        same = same_outputs(before, outputs_of(loaded))
        save_whole(Path(folder) / WEIGHTS_FILE, loaded.state_dict())
        again = torch.load(Path(folder) / WEIGHTS_FILE, mmap=True, weights_only=True)
        student.load_state_dict(again)
        same = same and same_outputs(before, outputs_of(student))
    times_s = [after - start for start, after in zip(clock.at_s, clock.at_s[1:], strict=False)]
    return {
        "parameters_m": round(parameters_m(student), 1),
        "recompute": recipe.train.recompute,
        "seconds to make the student": round(made_s, 1),
        "seconds of each step": [round(seconds, 1) for seconds in times_s],
        "peak memory after each step, GB": [round(value, 2) for value in clock.peak_gb],
        "peak memory after saving, GB": round(after_stage_gb, 2),
        "peak memory at the end, GB": round(peak_gb(), 2),
        "outputs equal after save and load": same,
        "kept": same and max(clock.peak_gb) < LIMIT_GB,
    }


@torch.no_grad()
def outputs_of(student: Student) -> tuple[torch.Tensor, ...]:
    return student.eval()(*inputs_for())


def same_outputs(before: tuple[torch.Tensor, ...], after: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def peak_gb() -> float:
    """Highest memory of this process so far, in 10^9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
