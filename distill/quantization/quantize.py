"""Train the INT8 self of a run: the main path of `edge distill --quantize`.

The run's student, frozen and in float, says of every copy of every part what its INT8 self is to
say; both begin with the same weights. The loop, the folders and the state are those of every
training. Where INT8 is computed, and by which ranges it begins, is asked of who exports (see
`Calibrate`), so that training plays what export writes. At the end the weights are rounded to where
INT8 has them and the ranges go into the record: exporting the run measures neither again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from distill.augment.copies import Copies
from distill.checkpoint import (
    Int8Ranges,
    Int8Record,
    RunRecord,
    ScoreMovement,
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
from distill.quantization.order import QuantizeOrder
from distill.students.student import Student
from distill.targets.compute import targets_in
from distill.train import package_versions, parts_by_label, silent
from distill.training.loop import Run, run_stage
from distill.training.processes import first_on_main, on_main
from distill.training.run_folders import RunFolders, begin, finish, refuse_unshared
from distill.training.saved_state import Position
from edge.artefact import new_file
from edge.errors import AnswerIsNo
from edge.prepare import model_inputs
from edge.recording.format import Recording
from edge.scorer import Scorer

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
    on_main(accelerator, lambda: _look_over(order, folders, progress))
    refuse_unshared(folders)
    ranges = first_on_main(accelerator, partial(_ranges, order, calibrate, folders))
    position = folders.states.newest() or Position(remarks=remarks)
    if position.stage == 0:
        float_self = checkpoint_from_run(order.run_folder).student.requires_grad_(False)
        learner = partial(SelfTaught, float_self.to(accelerator.device))
        run = Run(order.recipe, accelerator, folders.states, journal, folders.unfinished, learner)
        student = _int8_self(order, ranges)
        batches = first_on_main(accelerator, partial(_batches, order, student, folders, progress))
        position = run_stage(run, student, batches, position)
    on_main(accelerator, lambda: _conclude(order, ranges, position, folders, progress))
    return read_record(folders.final)


def came_nearer(record: RunRecord) -> bool:
    """Tell whether held-out parts say that training brought INT8 nearer to the float student."""
    assert record.int8 is not None
    return record.int8.after.mean < record.int8.before.mean


def _look_over(order: QuantizeOrder, folders: RunFolders, progress: Progress) -> None:
    """Look at everything that can be wrong with the input before the first long work."""
    checkpoint_from_run(order.run_folder)
    saved = folders.states.newest()
    if saved is None:
        check_parts_readable(order.parts, progress)
        recording = order.parts.recording
        held_out = recording.rows_in(order.recipe.threshold.split)
        check_readable(recording, held_out, order.parts.spec, progress)
    else:
        folders.states.check(saved)
    begin(folders, order.recipe)


def _ranges(order: QuantizeOrder, calibrate: Calibrate, folders: RunFolders) -> Int8Ranges:
    """Calibrate the float student, or find on disk what an earlier process found."""
    path = folders.unfinished / _RANGES_FILE
    if path.is_file():
        return msgspec.json.decode(path.read_bytes(), type=Int8Ranges)
    ranges = calibrate(checkpoint_from_run(order.run_folder).student)
    with new_file(path, force=True) as unsealed:
        unsealed.write_bytes(msgspec.json.encode(ranges))
    return ranges


def _int8_self(order: QuantizeOrder, ranges: Int8Ranges) -> Student:
    """Return the run's student, in INT8 by calibration alone."""
    student = checkpoint_from_run(order.run_folder).student
    put_in_int8(student, ranges.inputs, learn_ranges=order.recipe.quantize.learn_ranges)
    return student


def _batches(
    order: QuantizeOrder, student: Student, folders: RunFolders, progress: Progress
) -> OwnBatches:
    """Compute what the student's stem sees of every copy, or find it on disk."""
    recipe, stage, parts = order.recipe, order.stage, order.parts
    targets = targets_in(folders.targets_of(stage), parts, recipe, stage, student, progress)
    return OwnBatches(Copies(parts, recipe), targets, recipe, stage)


def _conclude(
    order: QuantizeOrder,
    ranges: Int8Ranges,
    position: Position,
    folders: RunFolders,
    progress: Progress,
) -> None:
    """Set the thresholds on the INT8 self, compare it, write the run and give it its name."""
    before_run, recording = order.record, order.parts.recording
    student = _int8_self(order, ranges)
    before, after = _movements(order, student, folders, position, progress)
    scorer = StudentScorer(student, before_run.spec)
    rule, remarks = rule_for(scorer, recording, order.recipe.threshold, progress)
    trained = as_trained(student, ranges.inputs)
    take_out_of_int8(student)
    spec = msgspec.structs.replace(before_run.spec, rule=rule)
    record = msgspec.structs.replace(
        before_run,
        spec=spec,
        recording=recording.header.name,
        recording_digest=recording.digest(),
        parts_by_label=parts_by_label(order.parts),
        losses_by_epoch=position.losses_by_epoch,
        versions=package_versions(),
        remarks=(*position.remarks, *remarks, *_movement_remarks(before, after, order.run_folder)),
        stages=(*before_run.stages, _stage_record(order, recording)),
        normals=reference_of_training(
            StudentScorer(student, spec), recording, order.parts.rows, progress
        ),
        int8=Int8Record(
            weights_digest=before_run.weights_digest,
            recording_digest=before_run.recording_digest,
            recipe=order.recipe,
            calibrated=ranges,
            inputs=trained,
            before=before,
            after=after,
        ),
    )
    write_run(folders.unfinished, student, record)
    finish(folders)
    (folders.final / _RANGES_FILE).unlink(missing_ok=True)  # the record has them


def _movements(
    order: QuantizeOrder,
    student: Student,
    folders: RunFolders,
    position: Position,
    progress: Progress,
) -> tuple[ScoreMovement, ScoreMovement]:
    """Compare with the float run on held-out parts, then with what was learned loaded in place."""
    spec, recording = order.record.spec, order.parts.recording
    split = order.recipe.threshold.split
    int8_self = StudentScorer(student, spec)
    float_self = StudentScorer(checkpoint_from_run(order.run_folder).student, spec)
    said_N = _scores(float_self, recording, split, progress)
    before = _movement(said_N, _scores(int8_self, recording, split, progress))
    folders.states.load_weights(student, position)
    return before, _movement(said_N, _scores(int8_self, recording, split, progress))


def _scores(
    scorer: Scorer, recording: Recording, split: str, progress: Progress
) -> NDArray[np.float64]:
    """Return the anomaly score [N] of every sample of a split."""
    rows = recording.rows_in(split)
    bar = progress(f"comparing float and int8 on {split}")(range(len(rows)))
    inputs = (model_inputs(recording.read_sample(rows[number]), scorer.spec) for number in bar)
    return np.array([scorer.score(one).anomaly_score for one in inputs])


def _movement(float_N: NDArray[np.float64], int8_N: NDArray[np.float64]) -> ScoreMovement:
    if not np.isfinite(int8_N).all():
        raise AnswerIsNo(
            where="the student in int8",
            expected="finite anomaly scores",
            found=f"{int((~np.isfinite(int8_N)).sum())} of {len(int8_N)} that are no numbers",
            do="Lower quantize.learning_rate, or export the run as it is.",
        )
    moved_N = np.abs(int8_N - float_N)
    return ScoreMovement(len(moved_N), float(moved_N.mean()), float(moved_N.max()))


def _movement_remarks(
    before: ScoreMovement, after: ScoreMovement, run_folder: Path
) -> tuple[str, ...]:
    """Say it where training made nothing better: nobody should ship a run for its name."""
    if after.mean < before.mean:
        return ()
    return (
        f"training did NOT bring the INT8 self nearer to its float teacher: export {run_folder}, "
        "or try other quantize.epochs and quantize.learning_rate",
    )


def _stage_record(order: QuantizeOrder, recording: Recording) -> StageRecord:
    digests = {recording.header.name: recording.digest()}
    return StageRecord(_STAGE, order.recipe.train.epochs, digests)
