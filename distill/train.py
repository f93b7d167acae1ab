"""Train a student: the main path of `edge distill`, stage by stage, and the record of it.

While a run is under way it lives in `RUN.unfinished` beside the final place, with the targets and
the newest state; when it is done, the folder is renamed to `RUN`. Several processes may share the
work (`distill/launch/`): then the main one computes targets, speaks and renames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version

import msgspec
import torch
from accelerate import Accelerator

from distill.augment.copies import Copies
from distill.checkpoint import RunRecord, StageRecord, StudentScorer, read_record, write_run
from distill.dataset import (
    Progress,
    TrainingParts,
    check_parts_readable,
    check_readable,
    parts_of_stage,
    require_normal_parts,
    training_parts,
)
from distill.evaluation.reference import reference_of_training
from distill.evaluation.thresholds import rule_for
from distill.journal.news import AllOf, Journal
from distill.recipe import Recipe, Stage
from distill.students.init_from import refuse_unfit, start_from
from distill.students.student import Student
from distill.targets.compute import look_over, targets_in
from distill.training.batches import Batches
from distill.training.loop import Run, run_stage
from distill.training.processes import accelerator_for, first_on_main, on_main
from distill.training.run_folders import RunFolders, begin, finish, refuse_unshared
from distill.training.saved_state import Position
from distill.training.standardisation import fit_standardisation
from edge.recording.format import UNLABELLED, Recording

_VERSIONS_OF = ("torch", "accelerate", "numpy", "orin-inspect")


def distill(  # noqa: PLR0913, PLR0917 (what is trained, where it goes, who watches, who works)
    recording: Recording,
    recipe: Recipe,
    folders: RunFolders,
    progress: Progress,
    journal: Journal | None = None,
    accelerator: Accelerator | None = None,
    remarks: tuple[str, ...] = (),
) -> RunRecord:
    """Train the recipe's student on the recording and leave a whole run. Raises InputError.

    Goes on in `folders.unfinished` where that exists (see `make_room`). KeyboardInterrupt means
    that it was stopped and can be resumed. `remarks` go into the record before its own.
    """
    accelerator = accelerator or accelerator_for(recipe.train)
    if journal is None or not accelerator.is_main_process:
        journal = AllOf()
    if not accelerator.is_main_process:
        progress = silent
    run = Run(recipe, accelerator, folders.states, journal, folders.unfinished)
    on_main(accelerator, lambda: _look_over(recording, recipe, folders, progress))
    refuse_unshared(folders)
    own = training_parts(recording, recipe)
    position = folders.states.newest() or Position(remarks=remarks)
    for stage in recipe.all_stages()[position.stage :]:
        student = fresh_student(own, recipe)
        teach = partial(_batches, stage, own, student, recipe, folders, progress)
        batches = first_on_main(accelerator, teach)
        position = _readied(student, stage, position, batches, folders)
        position = run_stage(run, student, batches, position)
    on_main(accelerator, lambda: _conclude(own, position, recipe, folders, progress))
    return read_record(folders.final)


def fresh_student(parts: TrainingParts, recipe: Recipe) -> Student:
    """Return an untrained student; the seed decides its weights."""
    torch.manual_seed(recipe.seed)
    return Student(parts.spec, recipe)


def _look_over(
    recording: Recording, recipe: Recipe, folders: RunFolders, progress: Progress
) -> None:
    """Look at everything that can be wrong with the input before the first long work."""
    own = training_parts(recording, recipe)
    require_normal_parts(recording, recipe.threshold.split)
    if folders.init_from is not None:
        refuse_unfit(fresh_student(own, recipe), folders.init_from)
    saved = folders.states.newest()
    if saved is None:
        planned = [
            (folders.targets_of(stage), parts_of_stage(stage, own, recipe, folders.opened), stage)
            for stage in recipe.all_stages()
        ]
        look_over(planned, recipe, fresh_student(own, recipe))
        held_out = recording.rows_in(recipe.threshold.split)
        check_readable(recording, held_out, own.spec, progress)
        for _, parts, _ in planned:
            check_parts_readable(parts, progress)
    else:
        folders.states.check(saved)
    begin(folders, recipe)


def _batches(  # noqa: PLR0913, PLR0917 (what targets depend on, where they go, and who watches)
    stage: Stage,
    own: TrainingParts,
    student: Student,
    recipe: Recipe,
    folders: RunFolders,
    progress: Progress,
) -> Batches:
    """Compute a stage's targets, or find them on disk, and return what it is taught by."""
    parts = parts_of_stage(stage, own, recipe, folders.opened)
    targets = targets_in(folders.targets_of(stage), parts, recipe, stage, student, progress)
    return Batches(Copies(parts, recipe), targets, recipe, stage)


def _readied(
    student: Student, stage: Stage, position: Position, batches: Batches, folders: RunFolders
) -> Position:
    """Give a fresh student what it goes into the stage with, in place; remember what was told.

    Where the stage was stopped within, its state is loaded over all of it later.
    """
    if position.step:
        return position
    first = position.stage == 0
    if not first:
        folders.states.load_weights(student, position)
    fit_standardisation(student, batches.targets, batches.copies, first_stage=first)
    remarks = [f"stage '{stage.name}', {remark}" for remark in batches.targets.remarks]
    steps = stage.epochs * batches.steps_per_epoch
    if stage.warmup_steps >= steps:
        remarks.append(
            f"stage '{stage.name}' has {steps} steps and a warm-up of {stage.warmup_steps}: the "
            "learning rate never reached its height (train.warmup_steps, train.epochs)"
        )
    if first and folders.init_from is not None:
        told = start_from(student, folders.init_from).text()
        remarks.append(f"started from {folders.init_from.name}: {told}")
    return msgspec.structs.replace(position, remarks=(*position.remarks, *remarks))


def _conclude(
    own: TrainingParts, position: Position, recipe: Recipe, folders: RunFolders, progress: Progress
) -> None:
    """Set the thresholds, write the run and give it its name."""
    student = fresh_student(own, recipe)
    folders.states.load_weights(student, position)
    scorer = StudentScorer(student, own.spec)
    rule, remarks = rule_for(scorer, own.recording, recipe.threshold, progress)
    spec = msgspec.structs.replace(own.spec, rule=rule)
    record = RunRecord(
        spec=spec,
        recipe=recipe,
        recipe_digest=recipe.digest(),
        recording=own.recording.header.name,
        recording_digest=own.recording.digest(),
        weights_digest="",
        parts_by_label=parts_by_label(own),
        losses_by_epoch=position.losses_by_epoch,
        versions=package_versions(),
        remarks=(*position.remarks, *remarks),
        stages=tuple(_record_of(stage, own, recipe, folders) for stage in recipe.all_stages()),
        normals=reference_of_training(
            StudentScorer(student, spec), own.recording, own.rows, progress
        ),
    )
    write_run(folders.unfinished, student, record)
    finish(folders)


def _record_of(
    stage: Stage, own: TrainingParts, recipe: Recipe, folders: RunFolders
) -> StageRecord:
    parts = parts_of_stage(stage, own, recipe, folders.opened)
    recordings = [source.recording for source in parts.sources]
    digests: dict[str, str] = {}
    for recording in recordings:
        name = recording.header.name
        # Two recordings may well have one name.
        digests[name if name not in digests else str(recording.folder)] = recording.digest()
    return StageRecord(stage.name, stage.epochs, digests)


def parts_by_label(parts: TrainingParts) -> dict[str, int]:
    """Count the parts of each of the model's classes, and those that nobody labelled, if any."""
    counts = Counter(row.label for row in parts.rows)
    unlabelled = {"unlabelled": counts[UNLABELLED]} if counts[UNLABELLED] else {}
    return {**{name: counts[name] for name in parts.spec.classes}, **unlabelled}


def package_versions() -> dict[str, str]:
    """Return the versions of what trains."""
    return {name: _version_of(name) for name in _VERSIONS_OF}


def _version_of(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return "unknown"


def silent(_title: str) -> Callable[[Sequence[int]], Iterable[int]]:
    """A progress for processes that have nothing to say."""
    return lambda items: items
