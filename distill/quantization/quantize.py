"""Train the INT8 self of a run: the main path of `edge distill --quantize`.

The run's student, frozen and in float, says of every copy of every part what its INT8 self is to
say; both begin with the same weights. The loop, the folders and the state are those of every
training. Where INT8 is computed, and by which ranges it begins, is asked of who exports (see
`Calibrate`), so that training plays what export writes. At the end the weights are rounded to where
INT8 has them and the ranges go into the record: exporting the run measures neither again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from distill.augment.copies import Copies
from distill.checkpoint import (
    Int8Ranges,
    Int8Record,
    RunRecord,
    StageRecord,
    StudentScorer,
    checkpoint_from_run,
    read_record,
    write_run,
)
from distill.dataset import Progress, check_parts_readable, check_readable
from distill.evaluation.reference import reference_of_training
from distill.evaluation.thresholds import rule_for
from distill.journal.news import AllOf, Journal
from distill.quantization.layers import as_trained, put_in_int8, take_out_of_int8
from distill.quantization.lessons import OwnBatches, SelfTaught
from distill.quantization.movement import (
    distances,
    held_out_scores,
    is_nearer,
    movement_of,
    movement_remarks,
)
from distill.quantization.order import QuantizeOrder
from distill.students.student import Student
from distill.targets.compute import targets_in
from distill.train import package_versions, parts_by_label, silent
from distill.training.loop import Run, run_stage
from distill.training.processes import first_on_main, on_main
from distill.training.run_folders import RunFolders, begin, finish, refuse_unshared
from distill.training.saved_state import Position
from edge.artefact import new_file
from edge.errors import InputError
from edge.recording.format import UNREADABLE_JSON, Recording

Calibrate = Callable[[Student], Int8Ranges]
"""Returns everything that export would have in INT8 of a student, with calibrated ranges."""

_STAGE = "int8"
_RANGES_FILE = "int8.json"  # of an unfinished run: a resumed one begins with the same ranges


def quantize(  # noqa: PLR0913, PLR0917 (what is trained, where it goes, who watches, who works)
    order: QuantizeOrder,
    calibrate: Calibrate,
    folders: RunFolders,
    progress: Progress,
    journal: Journal | None,
    accelerator: Accelerator,
    remarks: tuple[str, ...] = (),
) -> RunRecord:
    """Train the INT8 self of the order's run and leave a whole run of its own. Raises InputError.

    Goes on in `folders.unfinished` where that exists (see `make_room`). KeyboardInterrupt means
    that it was stopped and can be resumed. `remarks` go into the record before its own.
    """
    if journal is None or not accelerator.is_main_process:
        journal = AllOf()
    if not accelerator.is_main_process:
        progress = silent
    # Before the first long work, and never again: all that follows takes copies of it.
    float_self = first_on_main(accelerator, lambda: checkpoint_from_run(order.run_folder).student)
    on_main(accelerator, lambda: _look_over(order, folders, progress))
    refuse_unshared(folders)
    ranges = first_on_main(accelerator, partial(_ranges, float_self, calibrate, folders))
    position = folders.states.newest() or Position(remarks=remarks)
    pair = _Pair(float_self, ranges, order.recipe.quantize.learn_ranges)
    if position.stage == 0:
        run = Run(
            *(order.recipe, accelerator, folders.states, journal, folders.unfinished),
            learner=partial(SelfTaught, float_self),
            learning_rate_key="quantize.learning_rate",
        )
        student = pair.int8_self()
        batches = first_on_main(accelerator, partial(_batches, order, student, folders, progress))
        float_self.to(accelerator.device)
        position = run_stage(run, student, batches, position)
        del student  # its weights are on the disk, for the one that is measured
    float_self.cpu()
    on_main(accelerator, lambda: _conclude(order, pair, position, folders, progress))
    return read_record(folders.final)


def came_nearer(record: RunRecord) -> bool:
    """Tell whether held-out parts say that training brought INT8 nearer to the float student."""
    assert record.int8 is not None
    return is_nearer(record.int8.before, record.int8.after)


@dataclass(frozen=True)
class _Pair:
    """The float student, and what makes a copy of it an INT8 one."""

    float_self: Student
    ranges: Int8Ranges
    learn_ranges: bool

    def int8_self(self) -> Student:
        """Return a copy of the float student, in INT8 by calibration alone."""
        student = copy.deepcopy(self.float_self)
        put_in_int8(student, self.ranges.inputs, learn_ranges=self.learn_ranges)
        return student


def _look_over(order: QuantizeOrder, folders: RunFolders, progress: Progress) -> None:
    """Look at everything that can be wrong with the parts before the first long work."""
    saved = folders.states.newest()
    if saved is None:
        check_parts_readable(order.parts, progress)
        recording = order.parts.recording
        held_out = recording.rows_in(order.recipe.threshold.split)
        check_readable(recording, held_out, order.parts.spec, progress)
    else:
        folders.states.check(saved)
    begin(folders, order.recipe)


def _ranges(float_self: Student, calibrate: Calibrate, folders: RunFolders) -> Int8Ranges:
    """Calibrate the float student, or find on disk what an earlier process found."""
    path = folders.unfinished / _RANGES_FILE
    if path.is_file():
        try:
            return msgspec.json.decode(path.read_bytes(), type=Int8Ranges)
        except UNREADABLE_JSON as error:
            raise InputError(
                where=path,
                expected="the ranges that were found before the training was stopped",
                found=str(error),
                do="Begin again with --force.",
            ) from None
    ranges = calibrate(float_self)
    with new_file(path, force=True) as unsealed:
        unsealed.write_bytes(msgspec.json.encode(ranges))
    return ranges


def _batches(
    order: QuantizeOrder, student: Student, folders: RunFolders, progress: Progress
) -> OwnBatches:
    """Compute what the student's stem sees of every copy, or find it on disk."""
    recipe, stage, parts = order.recipe, order.stage, order.parts
    targets = targets_in(folders.targets_of(stage), parts, recipe, stage, student, progress)
    return OwnBatches(Copies(parts, recipe), targets, recipe, stage)


def _conclude(
    order: QuantizeOrder, pair: _Pair, position: Position, folders: RunFolders, progress: Progress
) -> None:
    """Set the thresholds on the INT8 self, compare it, write the run and give it its name."""
    recording, spec = order.parts.recording, order.record.spec
    student = pair.int8_self()
    before_N, after_N = _distances(order, pair.float_self, student, position, folders, progress)
    rule, remarks = rule_for(
        StudentScorer(student, spec), recording, order.recipe.threshold, progress
    )
    told = (*remarks, *movement_remarks(before_N, after_N, str(order.run_folder)))
    made = _int8_record(order, pair.ranges, student, before_N, after_N)
    take_out_of_int8(student)
    spec = msgspec.structs.replace(spec, rule=rule)
    normals = reference_of_training(
        StudentScorer(student, spec), recording, order.parts.rows, progress
    )
    record = msgspec.structs.replace(
        _record(order, position),
        spec=spec,
        int8=made,
        normals=normals,
        remarks=(*position.remarks, *told),
    )
    write_run(folders.unfinished, student, record)
    finish(folders)
    (folders.final / _RANGES_FILE).unlink(missing_ok=True)  # the record has them


def _distances(  # noqa: PLR0913, PLR0917 (both students, where, and who watches)
    order: QuantizeOrder,
    float_self: Student,
    student: Student,
    position: Position,
    folders: RunFolders,
    progress: Progress,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compare with the float run on held-out parts, then with what was learned loaded in place."""
    spec, recording, split = order.record.spec, order.parts.recording, order.recipe.threshold.split
    said_N = held_out_scores(StudentScorer(float_self, spec), recording, split, progress)
    int8_self = StudentScorer(student, spec)
    before_N = distances(said_N, held_out_scores(int8_self, recording, split, progress))
    folders.states.load_weights(student, position)
    return before_N, distances(said_N, held_out_scores(int8_self, recording, split, progress))


def _int8_record(
    order: QuantizeOrder,
    ranges: Int8Ranges,
    student: Student,
    before_N: NDArray[np.float64],
    after_N: NDArray[np.float64],
) -> Int8Record:
    """Return what training in INT8 did; the student is still in it."""
    return Int8Record(
        weights_digest=order.record.weights_digest,
        recording_digest=order.record.recording_digest,
        recipe=order.recipe,
        calibrated=ranges,
        inputs=as_trained(student, ranges.inputs),
        before=movement_of(before_N),
        after=movement_of(after_N),
    )


def _record(order: QuantizeOrder, position: Position) -> RunRecord:
    """Return the float run's record with what was trained on, and how it went."""
    recording, float_run = order.parts.recording, order.record
    return msgspec.structs.replace(
        float_run,
        recording=recording.header.name,
        recording_digest=recording.digest(),
        parts_by_label=parts_by_label(order.parts),
        losses_by_epoch=position.losses_by_epoch,
        versions=package_versions(),
        stages=(*float_run.stages, _stage_record(order, recording)),
    )


def _stage_record(order: QuantizeOrder, recording: Recording) -> StageRecord:
    digests = {recording.header.name: recording.digest()}
    return StageRecord(_STAGE, order.recipe.train.epochs, digests)
