"""Trainings of a second, and ways to end them before they are done."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from small_distillation import quick_recipe, silent

from distill.journal.news import AllOf
from distill.recipe import Recipe, StageRecipe
from distill.train import distill
from distill.training.run_folders import RunFolders
from edge.recording.format import Recording

# No teacher and no frozen stem: nothing is loaded, and a state is small.
BARE = (
    "student.stem='patch'",
    "teacher.backbones=[]",
    "loss.soft_labels=0",
    "loss.features=0",
    "targets.teacher_share=0",
)
EVERY_STEP = "train.save_every_s=1e-9"
_PATIENCE_S = 120


def bare_recipe(*overrides: str) -> Recipe:
    return quick_recipe(*BARE, *overrides)


def with_general_stage(recipe: Recipe, recording: Recording) -> Recipe:
    """The same recipe with a stage before the last."""
    loss = msgspec.structs.replace(recipe.loss, map=1.0)
    general = StageRecipe((str(recording.folder),), (), 2, 0.002, 2, loss)
    return msgspec.structs.replace(recipe, stages={"general": general})


def trained(recording: Recording, out: Path, recipe: Recipe, journal: AllOf | None = None):
    """Begin a run, or go on with it."""
    return distill(recording, recipe, RunFolders(out), silent, journal)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(run / "student.pt", weights_only=True)
    return weights


def assert_same_weights(run: Path, other: Path) -> None:
    theirs = weights_of(other)
    for name, tensor in weights_of(run).items():
        assert torch.equal(tensor, theirs[name]), name


def killed_once(work: Callable[[], object], due: Callable[[], bool]) -> bool:
    """Do `work` in a process of its own and kill it as soon as `due`; tell whether it was."""
    child = os.fork()
    if child == 0:  # the threads of torch's pool did not come along: use none
        try:
            torch.set_num_threads(1)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + _PATIENCE_S
    while not due():
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "the training failed by itself"
            return False
        assert time.monotonic() < deadline
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True
