"""Adapt a run to another line by few of its weights: the main path of `edge adapt`.

The student learns as in `distill.train`, in one stage, by the same loop; only most of it is frozen
(see `distill.adaptation.lora`), and at the end what it learned is merged into its weights.
"""

from __future__ import annotations

from functools import partial

import msgspec
import torch
from accelerate import Accelerator

from distill.adaptation.lora import Adaptation, merge_lora, with_lora
from distill.adaptation.not_learned import held_out_remarks, not_learned
from distill.adaptation.order import AdaptOrder
from distill.augment.copies import Copies
from distill.checkpoint import (
    AdaptRecord,
    RunRecord,
    StageRecord,
    StudentScorer,
    checkpoint_from_run,
    read_record,
    scorer_from_run,
    write_run,
)
from distill.dataset import Progress, check_parts_readable, check_readable
from distill.evaluation.held_out import held_out_on
from distill.evaluation.reference import reference_of_training
from distill.evaluation.thresholds import rule_for
from distill.journal.news import AllOf, Journal
from distill.students.student import Student
from distill.targets.compute import targets_in
from distill.train import package_versions, parts_by_label, silent
from distill.training.batches import Batches
from distill.training.loop import Run, run_stage
from distill.training.processes import first_on_main, on_main
from distill.training.run_folders import RunFolders, begin, finish, refuse_unshared
from distill.training.saved_state import Position
from distill.training.standardisation import fit_standardisation
from edge.recording.format import Recording
from edge.verdict import DecisionRule

_STAGE = "adapted"


def adapt(
    order: AdaptOrder,
    folders: RunFolders,
    progress: Progress,
    journal: Journal | None,
    accelerator: Accelerator,
) -> RunRecord:
    """Teach the order's run its parts and leave a whole run of its own. Raises InputError.

    Goes on in `folders.unfinished` where that exists (see `make_room`). KeyboardInterrupt means
    that it was stopped and can be resumed.
    """
    if journal is None or not accelerator.is_main_process:
        journal = AllOf()
    if not accelerator.is_main_process:
        progress = silent
    recipe = order.recipe
    rate = "few_shot_learning_rate" if order.few_shot else "learning_rate"
    run = Run(
        *(recipe, accelerator, folders.states, journal, folders.unfinished),
        learning_rate_key=f"adapt.{rate}",
    )
    on_main(accelerator, lambda: _look_over(order, folders, progress))
    refuse_unshared(folders)
    stages = recipe.all_stages()
    position = folders.states.newest() or Position(stage=len(stages) - 1)
    if position.stage < len(stages):
        student = checkpoint_from_run(order.run_folder).student
        batches = first_on_main(accelerator, partial(_batches, order, student, folders, progress))
        if not position.step:
            fit_standardisation(student, batches.targets, batches.copies, first_stage=False)
            position = msgspec.structs.replace(position, remarks=batches.targets.remarks)
        _open(student, order)
        position = run_stage(run, student, batches, position)
    on_main(accelerator, lambda: _conclude(order, position, folders, progress))
    return read_record(folders.final)


def _look_over(order: AdaptOrder, folders: RunFolders, progress: Progress) -> None:
    """Look at everything that can be wrong with the input before the first long work."""
    _open(checkpoint_from_run(order.run_folder).student, order)
    saved = folders.states.newest()
    if saved is None:
        check_parts_readable(order.parts, progress)
        recording, split = order.parts.recording, order.recipe.threshold.split
        held_out = [row for row in recording.rows if row.split == split]
        check_readable(recording, held_out, order.parts.spec, progress)
    else:
        folders.states.check(saved)
    begin(folders, order.recipe)


def _open(student: Student, order: AdaptOrder) -> Adaptation:
    """Freeze the student, in place, but for what adapting trains; the seed decides its start."""
    torch.manual_seed(order.recipe.seed)
    return with_lora(student)


def _batches(
    order: AdaptOrder, student: Student, folders: RunFolders, progress: Progress
) -> Batches:
    """Compute the targets, or find them on disk, and return what the student is taught by."""
    recipe, stage = order.recipe, order.recipe.all_stages()[-1]
    targets = targets_in(folders.targets_of(stage), order.parts, recipe, stage, student, progress)
    return Batches(Copies(order.parts, recipe), targets, recipe, stage)


def _conclude(
    order: AdaptOrder, position: Position, folders: RunFolders, progress: Progress
) -> None:
    """Merge, measure, set the thresholds, write the run and give it its name."""
    student = checkpoint_from_run(order.run_folder).student
    adaptation = _open(student, order)
    folders.states.load_weights(student, position)
    merge_lora(student)
    scorer, recording = StudentScorer(student, order.record.spec), order.parts.recording
    split, before_run = order.recipe.threshold.split, order.record
    with scorer_from_run(order.run_folder) as unadapted:
        before = held_out_on(unadapted, recording, split, progress)
    after = held_out_on(scorer, recording, split, progress)
    rule, remarks = _rule_for(order, scorer, progress)
    spec = msgspec.structs.replace(before_run.spec, rule=rule)
    relates = student.relation is not None and bool(student.relation.precision_P.any())
    record = msgspec.structs.replace(
        before_run,
        spec=spec,
        recording=recording.header.name,
        recording_digest=recording.digest(),
        parts_by_label=parts_by_label(order.parts),
        losses_by_epoch=position.losses_by_epoch,
        versions=package_versions(),
        remarks=(
            *position.remarks,
            *remarks,
            *held_out_remarks(before, after, split, str(order.run_folder)),
        ),
        stages=(*before_run.stages, _stage_record(order, recording)),
        adapted=AdaptRecord(
            weights_digest=before_run.weights_digest,
            recording_digest=before_run.recording_digest,
            recipe=order.recipe,
            parts=order.part_count,
            few_shot=order.few_shot,
            rank=adaptation.rank,
            trained_share=adaptation.share,
            before=before,
            after=after,
            not_learned=not_learned(order, relates=relates),
        ),
        normals=reference_of_training(
            StudentScorer(student, spec), recording, order.parts.rows, progress
        ),
        int8=None,  # its ranges were those of other weights
    )
    write_run(folders.unfinished, student, record)
    finish(folders)


def _rule_for(
    order: AdaptOrder, scorer: StudentScorer, progress: Progress
) -> tuple[DecisionRule, list[str]]:
    """Set the thresholds on held-out normal parts; without any, the run's own stay."""
    recording, recipe = order.parts.recording, order.recipe.threshold
    held_out = {row.label for row in recording.rows if row.split == recipe.split}
    if recording.normal_class in held_out:
        return rule_for(scorer, recording, recipe, progress)
    rule = order.record.spec.rule
    assert rule is not None  # every whole run has one
    return rule, [
        f"no normal part is held out in '{recipe.split}': the thresholds are still those of "
        f"{order.run_folder}, from the other line. Nobody knows how many good parts of this one "
        "they fail: hold out normal parts and adapt again before relying on them"
    ]


def _stage_record(order: AdaptOrder, recording: Recording) -> StageRecord:
    digests = {recording.header.name: recording.digest()}
    return StageRecord(_STAGE, order.recipe.train.epochs, digests)
