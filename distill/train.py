"""Train a student: the main path of `edge distill`, and how it survives being stopped.

While a run is under way it lives in `RUN.unfinished` beside the final place, with the targets and
the state after the last whole epoch; when it is done, the folder is renamed to `RUN`.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from distill.checkpoint import (
    EPOCH_FILE,
    RECORD_FILE,
    RunRecord,
    StudentScorer,
    load_epoch,
    save_whole,
    write_run,
)
from distill.dataset import (
    TRAIN_SPLIT,
    Progress,
    TrainingParts,
    check_readable,
    require_normal_parts,
    spec_for,
)
from distill.evaluation.thresholds import rule_for
from distill.recipe import Recipe, TrainRecipe
from distill.students.init_from import refuse_unfit, start_from
from distill.students.student import Student, part_spectrum
from distill.targets import Copies, Targets, targets_in
from distill.training.batches import Batches
from distill.training.losses import losses_of, weighted_sum
from edge.artefact import check_free, new_file
from edge.errors import AnswerIsNo, InputError
from edge.recording.format import Recording

RECIPE_FILE = "recipe.json"
_GRADIENT_LIMIT = 1.0
_FIT_PARTS = 1024  # windows and stem features that the student's standardisation is taken from
_VERSIONS_OF = ("torch", "numpy", "orin-inspect")


@dataclass(frozen=True)
class RunFolders:
    """Where a run comes from, where it goes, and where it lives until it is done."""

    final: Path
    targets: Path | None = None  # None: inside the run
    init_from: Path | None = None  # public weights that the student starts from

    @property
    def unfinished(self) -> Path:
        """The folder of a run that is under way."""
        return self.final.with_name(self.final.name + ".unfinished")


@dataclass
class Progression:
    """What one epoch hands to the next; this, and nothing else, is what a resume needs.

    Random numbers need no place here: every epoch's follow from its number.
    """

    student: Student
    optimizer: torch.optim.Optimizer
    epochs_done: int = 0
    losses_by_epoch: list[dict[str, float]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # what a person should know of the start


def distill(
    recording: Recording, recipe: Recipe, folders: RunFolders, progress: Progress
) -> RunRecord:
    """Train the recipe's student on the recording and leave a whole run. Raises InputError.

    Goes on in `folders.unfinished` where that exists (see `make_room`).
    """
    parts = training_parts(recording, recipe)
    require_normal_parts(recording, recipe.threshold.split)
    student = fresh_student(parts, recipe)
    if folders.init_from is not None:
        refuse_unfit(student, folders.init_from)  # before the files are read, not after
    held_out = recording.rows_in(recipe.threshold.split)
    check_readable(recording, (*parts.rows, *held_out), parts.spec, progress)
    _begin(folders, recipe)
    targets_folder = folders.targets or folders.unfinished / "targets"
    targets = targets_in(targets_folder, parts, recipe, student, progress)
    batches = Batches(Copies(parts, recipe), targets)

    state = _start_or_resume(folders, student, targets, batches)
    steps = batches.steps_per_epoch * (recipe.train.epochs - state.epochs_done)
    ticks = iter(progress("training")(range(steps)))
    for epoch in range(state.epochs_done, recipe.train.epochs):
        state.losses_by_epoch.append(_train_epoch(state, batches, epoch, ticks))
        state.epochs_done = epoch + 1
        _save_epoch(folders.unfinished, state)
    for _ in ticks:  # lets the bar reach its end
        pass

    scorer = StudentScorer(student, parts.spec)
    rule, remarks = rule_for(scorer, recording, recipe.threshold, progress)
    spec = msgspec.structs.replace(parts.spec, rule=rule)
    record = _record_of(parts, recipe, spec, state, (*state.remarks, *remarks))
    write_run(folders.unfinished, student, record)
    _finish(folders)
    return record


def make_room(folders: RunFolders, recipe: Recipe, *, resume: bool, force: bool) -> None:
    """Check the way to the output before any work, and clear it where `force` says so."""
    check_free(folders.final, force=force, mark=RECORD_FILE)
    noted = folders.unfinished / RECIPE_FILE
    if folders.unfinished.exists() and not resume:
        if not force and any(p.name != RECIPE_FILE for p in folders.unfinished.iterdir()):
            raise InputError(
                where=folders.unfinished,
                expected="no unfinished run",
                found="one that was stopped",
                do="Say --resume to go on with it, or --force to begin again.",
            )
        shutil.rmtree(folders.unfinished)
    if resume and not noted.is_file():
        raise InputError(
            where=folders.unfinished,
            expected="an unfinished run to resume",
            found="none",
            do="Leave out --resume to begin one.",
        )
    if resume and noted.read_bytes() != _beginning(folders, recipe):
        raise InputError(
            where=folders.unfinished,
            expected="the recipe and --init-from that the run began with",
            found="another recipe, other --set values or other weights to start from",
            do="Resume with the same --recipe, --set and --init-from, or begin again with --force.",
        )


def _begin(folders: RunFolders, recipe: Recipe) -> None:
    """Make the folder of the unfinished run; it says which recipe a resume must have."""
    folders.unfinished.mkdir(parents=True, exist_ok=True)
    with new_file(folders.unfinished / RECIPE_FILE, force=True) as partial:
        partial.write_bytes(_beginning(folders, recipe))


def _beginning(folders: RunFolders, recipe: Recipe) -> bytes:
    """What a resumed run must have in common with the one that was stopped."""
    start = None if folders.init_from is None else str(folders.init_from.resolve())
    return msgspec.json.encode({"recipe": recipe, "init_from": start})


def epochs_done_in(folders: RunFolders) -> int:
    """Return how many epochs an unfinished run holds."""
    state = load_epoch(folders.unfinished)
    return 0 if state is None else int(state["epochs_done"])


def training_parts(recording: Recording, recipe: Recipe) -> TrainingParts:
    """Return the training split as the recipe's student meets it. Raises InputError."""
    spec = spec_for(recording, recipe)
    return TrainingParts(recording, recording.rows_in(TRAIN_SPLIT), spec)


def fresh_student(parts: TrainingParts, recipe: Recipe) -> Student:
    """Return an untrained student; the seed decides its weights."""
    torch.manual_seed(recipe.seed)
    return Student(parts.spec, recipe)


def learning_rate_factor(step: int, steps: int, train: TrainRecipe) -> float:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov and Hutter, arXiv 1608.03983)."""
    warm = min(1.0, (step + 1) / train.warmup_steps)
    return warm * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _start_or_resume(
    folders: RunFolders, student: Student, targets: Targets, batches: Batches
) -> Progression:
    """Fit the student's standardisation and start its weights, or load the last whole epoch."""
    recipe = batches.copies.recipe.train
    learning = [weight for weight in student.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        learning, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    saved = load_epoch(folders.unfinished)
    if saved is None:
        _fit_standardisation(student, targets, batches.copies)
        told = [] if folders.init_from is None else _told(student, folders.init_from)
        return Progression(student, optimizer, remarks=told)
    student.load_state_dict(saved["student"])
    optimizer.load_state_dict(saved["optimizer"])
    return Progression(
        student, optimizer, saved["epochs_done"], saved["losses_by_epoch"], saved["remarks"]
    )


def _told(student: Student, weights: Path) -> list[str]:
    """Start the student from public weights and say what became of them."""
    return [f"started from {weights.name}: {start_from(student, weights).text()}"]


def _fit_standardisation(student: Student, targets: Targets, copies: Copies) -> None:
    """Take means and deviations of stem features and windows from the original parts."""
    stem_PS = torch.tensor(targets.stem[0, :_FIT_PARTS]).double().flatten(0, 1)
    student.image_tokens.mean_S.copy_(stem_PS.mean(0))
    student.image_tokens.scale_S.copy_(stem_PS.std(0).clamp_min(1e-3))
    if student.sensor_tokens is not None:
        count = min(len(copies.parts), _FIT_PARTS)
        windows = {index: copies.window(index, 0) for index in range(count)}
        present = {i: torch.from_numpy(w) for i, w in windows.items() if w is not None}
        student.sensor_tokens.frames.fit(torch.stack(list(present.values())))
        _fit_relation(
            student, targets, {i: w for i, w in present.items() if not copies.parts.labels_N[i]}
        )


@torch.no_grad()
def _fit_relation(student: Student, targets: Targets, normal: dict[int, Tensor]) -> None:
    """Fit what the image lets expect of the sensor, on normal parts (index -> window [C, T])."""
    if not normal:
        return
    assert student.relation is not None
    assert student.sensor_tokens is not None
    image_NS = torch.tensor(targets.stem[0, list(normal)]).float().mean(1)
    frames_NCNE = student.sensor_tokens.frames(torch.stack(list(normal.values())))
    student.relation.fit(image_NS, part_spectrum(frames_NCNE))


def _train_epoch(state: Progression, batches: Batches, epoch: int, ticks: Any) -> dict[str, float]:
    """Run one epoch; return each loss averaged over it."""
    recipe = batches.copies.recipe
    torch.manual_seed(recipe.seed * 1_000_003 + epoch)  # dropout and token noise
    state.student.train()
    sums: dict[str, Tensor] = {}
    steps = recipe.train.epochs * batches.steps_per_epoch
    for number, batch in enumerate(batches.epoch(epoch)):
        next(ticks, None)
        factor = learning_rate_factor(epoch * batches.steps_per_epoch + number, steps, recipe.train)
        for group in state.optimizer.param_groups:
            group["lr"] = recipe.train.learning_rate * factor
        reading = state.student.read(batch.stem_BGS, batch.sensor_BCT, batch.lesson.present_B2)
        losses = losses_of(reading, batch.lesson)
        state.optimizer.zero_grad()
        weighted_sum(losses, recipe.loss).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(state.student.parameters(), _GRADIENT_LIMIT)
        state.optimizer.step()
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros(())) + loss.detach()
    averages = {name: float(total) / batches.steps_per_epoch for name, total in sums.items()}
    if not all(math.isfinite(average) for average in averages.values()):
        raise AnswerIsNo(
            where=f"epoch {epoch + 1}",
            expected="finite losses",
            found=", ".join(f"{name} {average:g}" for name, average in averages.items()),
            do="Look for absurd readings with `edge recordings show`, or lower the learning rate "
            "(--set train.learning_rate=...). The epochs before this one are kept.",
        )
    return averages


def _save_epoch(folder: Path, state: Progression) -> None:
    save_whole(
        folder / EPOCH_FILE,
        {
            "student": state.student.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "epochs_done": state.epochs_done,
            "losses_by_epoch": state.losses_by_epoch,
            "remarks": state.remarks,
        },
    )


def _record_of(
    parts: TrainingParts,
    recipe: Recipe,
    spec: Any,
    state: Progression,
    remarks: tuple[str, ...],
) -> RunRecord:
    labels = [row.label for row in parts.rows]
    return RunRecord(
        spec=spec,
        recipe=recipe,
        recipe_digest=recipe.digest(),
        recording=parts.recording.header.name,
        recording_digest=parts.recording.digest(),
        weights_digest="",
        parts_by_label={name: labels.count(name) for name in spec.classes},
        losses_by_epoch=tuple(state.losses_by_epoch),
        versions={name: _version_of(name) for name in _VERSIONS_OF},
        remarks=remarks,
    )


def _version_of(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "unknown"


def _finish(folders: RunFolders) -> None:
    """Drop what only a resume needs, and give the run its name."""
    (folders.unfinished / EPOCH_FILE).unlink(missing_ok=True)
    (folders.unfinished / RECIPE_FILE).unlink(missing_ok=True)
    if folders.final.exists():
        shutil.rmtree(folders.final)
    folders.unfinished.rename(folders.final)
