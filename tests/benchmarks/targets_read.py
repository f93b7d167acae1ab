"""How fast targets are read, beside what trains on them and beside files read one by one.

    python -m tests.benchmarks targets_read

Targets of the recipe `tiny` (256x256 pixels, two channels) for a small recording, their values
random: reading does not look at them. Measured are parts per second of

- `Batches`, in the training process and in two data workers, files in the page cache;
- its stems and features alone, the page cache emptied before each batch: the disk is read;
- the loop that one writes first: a .npy file for each part, round and kind of target, np.load,
  stack, float;
- a training step of `tiny` on what was read: forward, backward and AdamW, all threads.

The readers and the step take turns, so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from distill.augment.copies import Copies
from distill.dataset import training_parts
from distill.recipe import load_recipe
from distill.students.student import Student
from distill.targets.folder import allocate, array_paths, mapped
from distill.targets.opened import Targets, layouts_of, opened
from distill.training.batches import Batch, Batches
from distill.training.learner import Learner
from distill.training.lessons import rows_of
from edge.recording.format import Recording
from edge.simulate.line import LineOrder, simulate

PARTS, STEPS = 160, 40
QUICK_PARTS, QUICK_STEPS = 60, 6
WORKERS = 2


def run(quick: bool = False) -> dict:
    """Print and return parts per second and ratios; nothing is promised here."""
    steps = QUICK_STEPS if quick else STEPS
    with tempfile.TemporaryDirectory() as folder:
        batches = _batches(Path(folder), QUICK_PARTS if quick else PARTS)
        one_by_one = _OneByOne(batches, Path(folder) / "files")
        learner = Learner(
            Student(batches.copies.parts.spec, batches.recipe), 0, batches.stage.loss
        ).train()
        step = _step(learner)
        ahead = _ahead(batches, steps)
        rates = _alternating(
            {
                "Batches": lambda number: batches.piece(0, number, 0, 1),
                "Batches, 2 workers": lambda _: next(ahead),
                "stems, features, cold disk": lambda number: _cold(batches, number),
                "files one by one": one_by_one.batch,
                "step of tiny": lambda number: step(batches.piece(0, number, 0, 1)),
            },
            steps,
        )
        size = len(batches.drawn(0, 0).parts_B)
        files = sum(path.stat().st_size for path in batches.targets.folder.iterdir())
    # The step's own time: it was given a batch that was read in the same call.
    step_s = rates.pop("step of tiny") - rates["Batches"]
    figures = {name: size / seconds for name, seconds in rates.items()}
    figures["step of tiny"] = size / step_s
    ratios = {
        "reading / step, 0 workers": rates["Batches"] / step_s,
        "reading / step, 2 workers": rates["Batches, 2 workers"] / step_s,
        "Batches / files one by one": figures["Batches"] / figures["files one by one"],
    }
    print(
        f"\ntargets of {len(batches.copies.parts)} parts, {files / 1e6:.0f} MB, batches of {size}"
    )
    print("\n".join(f"  {name:28}{value:10.0f} parts/s" for name, value in figures.items()))
    print("\n".join(f"  {name:28}{value:10.2f}" for name, value in ratios.items()))
    return {"parts_per_second": figures, "ratios": ratios}


def _batches(folder: Path, parts: int) -> Batches:
    """Return batches of `tiny` on simulated parts, with targets of random values."""
    (folder / "rec").mkdir()
    simulate(LineOrder(parts=parts, seed=0), folder / "rec")
    recipe = load_recipe("tiny", ("targets.copies=2",))
    own = training_parts(Recording.open(folder / "rec"), recipe)
    stage = recipe.all_stages()[-1]
    student = Student(own.spec, recipe)
    layouts = layouts_of(own, student, recipe, stage)
    (folder / "targets").mkdir()
    allocate(folder / "targets", layouts, fresh=True)
    random = np.random.default_rng(0)
    for name, path in array_paths(folder / "targets", layouts).items():
        array = mapped(path, layouts[name], "r+")
        array[:] = random.random(array.shape, np.float32)
        array.flush()  # type: ignore[attr-defined]
    targets = opened(folder / "targets", layouts)
    return Batches(Copies(own, recipe), targets, recipe, stage)


def _step(learner: Learner) -> Callable[[Batch], None]:
    optimizer = torch.optim.AdamW(learner.learning(), lr=1e-4)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        total, _ = learner(batch)
        total.backward()
        optimizer.step()

    return step


def _ahead(batches: Batches, steps: int) -> Iterator[Batch]:
    class Steps(Dataset):
        def __getitem__(self, number: int) -> Batch:
            each = batches.steps_per_epoch
            return batches.piece(number // each, number % each, 0, 1)

        def __len__(self) -> int:
            return 8 * steps

    return iter(DataLoader(Steps(), batch_size=None, num_workers=WORKERS, collate_fn=lambda b: b))


def _cold(batches: Batches, number: int) -> list[torch.Tensor]:
    """Read a batch's large targets after the system forgot the files."""
    folder, drawn = batches.targets.folder, batches.drawn(0, number)
    for path in folder.glob("*.npy"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    targets = opened(folder, batches.targets.layouts)  # a mapping that holds no page yet
    arrays = (targets.stem, *targets.features)
    return [rows_of(array, drawn.rounds_B, drawn.parts_B) for array in arrays]


class _OneByOne:
    """A file for each part, round and kind of target."""

    def __init__(self, batches: Batches, folder: Path) -> None:
        folder.mkdir()
        self.batches, self.folder = batches, folder
        from_files = replace(batches.copies.parts, readings=None)
        self.copies = replace(batches.copies, parts=from_files)
        targets: Targets = batches.targets
        kinds = {"stem": targets.stem, "map": targets.map, "features": targets.features[0]}
        for kind, array in kinds.items():
            for number in range(targets.rounds):
                for part in range(len(batches.copies.parts)):
                    np.save(folder / f"{kind}_{number}_{part}.npy", array[number, part])

    def batch(self, step: int) -> list[torch.Tensor]:
        drawn = self.batches.drawn(0, step)
        made = []
        for kind in ("stem", "map", "features"):
            loaded = [
                np.load(self.folder / f"{kind}_{number}_{part}.npy")
                for part, number in zip(drawn.parts_B, drawn.rounds_B, strict=True)
            ]
            made.append(torch.from_numpy(np.stack(loaded)).float())
        windows = [  # from the recording's files
            self.copies.window(int(part), int(number), 0)
            for part, number, shown in zip(*drawn, strict=True)
            if shown[1]
        ]
        made.append(torch.from_numpy(np.stack([w for w in windows if w is not None])))
        return made


def _alternating(works: dict[str, Callable[[int], object]], steps: int) -> dict[str, float]:
    """Return each work's median in seconds; the first two of each, which warm up, are left out."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for number in range(steps + 2):
        for name, work in works.items():
            started = time.perf_counter()
            work(number % 4)
            spent[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[2:]) for name, times in spent.items()}
