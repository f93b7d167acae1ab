"""What a run leaves on disk, and how it is read again.

    RUN/run.json      the record: model spec with its rule, recipe, digests, versions, history
    RUN/student.pt    the student's weights, named by their digest in the record
    RUN/targets/      what the teacher said (unless --targets named another folder)

Weights are read with `weights_only=True`: a checkpoint from a stranger cannot run code.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import torch
from torch import Tensor

from distill.recipe import Recipe
from distill.students.student import Student
from edge.artefact import digest_of_file, flush, new_file
from edge.bundle import MANIFEST_FILE
from edge.errors import InputError, MachineError
from edge.model_spec import ModelSpec
from edge.recording.format import HEADER_FILE, UNREADABLE_JSON
from edge.reference import Reference
from edge.scorer import ModelInputs, Scores, scores_from_outputs

SCHEMA = 2
_GO_ON = "go on with it by the command that began it and --resume"
RECORD_FILE = "run.json"
UNFINISHED = ".unfinished"  # ends the name of a run's folder until the run is done
WEIGHTS_FILE = "student.pt"


class StageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stage of a run."""

    name: str
    epochs: int
    recordings: dict[str, str]  # their names and digests


class HeldOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A student on held-out samples, in two numbers."""

    normals: int
    others: int
    auroc: float | None  # None where one of the two kinds is missing
    score_loss: float  # mean of -log(what the anomaly score gives to the truth)


class AdaptRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an adapted run came from, and what adapting it did."""

    weights_digest: str  # of the run that was adapted
    recording_digest: str  # of the recording that it was trained on
    recipe: Recipe  # what it was adapted by
    parts: int  # by part_id
    few_shot: bool
    rank: int
    trained_share: float  # of the parameters
    before: HeldOut | None  # None where nothing is held out
    after: HeldOut | None
    not_learned: tuple[str, ...]


class Int8Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one layer reads in int8, or several layers that read the same."""

    layers: tuple[str, ...]  # a Linear by its module's name, a batch of experts by its weight's
    covered: float  # the magnitude that becomes 127


class Int8Ranges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that is int8 in a student, with its ranges as they were calibrated."""

    method: str  # by which ranges were read from the samples
    samples: int  # of the training split
    inputs: tuple[Int8Input, ...]


class ScoreMovement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far INT8 moves the anomaly score of held-out parts from the float student's."""

    samples: int
    mean: float
    largest: float


class Int8Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of which run a run is the INT8 self, and what training it as such did."""

    weights_digest: str  # of the run that taught it
    recording_digest: str  # of the recording that that one was trained on
    recipe: Recipe  # what it was trained by
    calibrated: Int8Ranges  # before the first step
    inputs: tuple[Int8Input, ...]  # with the ranges that it was trained with, for export
    before: ScoreMovement  # in int8 by calibration alone
    after: ScoreMovement  # trained


class RunRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about a run that is not a weight."""

    spec: ModelSpec
    recipe: Recipe
    recipe_digest: str
    recording: str  # its name
    recording_digest: str
    weights_digest: str
    parts_by_label: dict[str, int]  # "unlabelled" among them where there are such parts
    losses_by_epoch: tuple[dict[str, float], ...]  # of all stages, one after the other
    versions: dict[str, str]
    remarks: tuple[str, ...]
    stages: tuple[StageRecord, ...] = ()
    adapted: AdaptRecord | None = None
    int8: Int8Record | None = None
    normals: Reference | None = None  # its normal training parts; None: none, or an older run
    schema: int = SCHEMA


def write_run(folder: Path, student: Student, record: RunRecord) -> None:
    """Write weights and record into `folder`; the record comes last and names the weights."""
    weights = folder / WEIGHTS_FILE
    save_whole(weights, student.state_dict())
    record = msgspec.structs.replace(record, weights_digest=digest_of_file(weights))
    content = msgspec.json.format(msgspec.json.encode(record))
    with new_file(folder / RECORD_FILE, force=True) as partial:
        partial.write_bytes(content + b"\n")


def read_record(folder: Path) -> RunRecord:
    """Read a run's record. Raises InputError."""
    path = folder / RECORD_FILE
    if not path.is_file():
        raise _no_run(folder, _what_is_at(folder))
    try:
        content = path.read_bytes()
        schema = msgspec.json.decode(content).get("schema")
    except OSError as error:
        raise _no_run(folder, f"a {RECORD_FILE} that cannot be read ({error.strerror})") from None
    except UNREADABLE_JSON:
        raise _no_run(folder, f"a {RECORD_FILE} that is not the JSON of a record") from None
    if schema != SCHEMA:
        raise InputError(
            where=path,
            expected=f"run schema {SCHEMA}",
            found=f"schema {schema}",
            do="Install the orin-inspect that wrote it, or distil again.",
        )
    try:
        return msgspec.json.decode(content, type=RunRecord)
    except UNREADABLE_JSON as error:
        raise _no_run(folder, f"a {RECORD_FILE} of another form ({error})") from None


@dataclass(frozen=True)
class Checkpoint:
    """A trained student, and what names it."""

    student: Student
    spec: ModelSpec
    digest: str  # SHA-256 of the weights' file
    training_digest: str  # of the recording it was trained on


def checkpoint_from_run(folder: Path) -> Checkpoint:
    """Return the run's student, ready to score, with its spec and digests. Raises InputError."""
    record = read_record(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file() or digest_of_file(path) != record.weights_digest:
        raise InputError(
            where=path,
            expected=f"weights with the digest {record.weights_digest[:12]} that run.json names",
            found="other weights" if path.is_file() else "nothing",
            do="Copy the whole run folder again, or distil again.",
        )
    with torch.device("meta"):  # neither room nor random numbers for weights that the file has
        student = Student(record.spec, record.recipe)
    # Mapped, and taken as they lie: not in memory twice. Who changes them changes a copy.
    weights = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    try:
        student.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise InputError(
            where=folder,
            expected="weights of the student that run.json describes",
            found=str(error).splitlines()[1].strip() if "\n" in str(error) else str(error),
            do="Copy the whole run folder again, or distil again.",
        ) from None
    return Checkpoint(student.eval(), record.spec, record.weights_digest, record.recording_digest)


def student_from_run(folder: Path) -> Student:
    """Return the run's student, ready to score. Raises InputError."""
    return checkpoint_from_run(folder).student


def scorer_from_run(folder: Path) -> StudentScorer:
    """Return the run's student as a scorer. Raises InputError."""
    return scorer_from_checkpoint(checkpoint_from_run(folder))


def scorer_from_checkpoint(checkpoint: Checkpoint) -> StudentScorer:
    """Return the checkpoint's student as a scorer."""
    return StudentScorer(checkpoint.student, checkpoint.spec)


class StudentScorer:
    """The student on the host, behind the interface that every engine has (`edge.scorer`)."""

    def __init__(self, student: Student, spec: ModelSpec) -> None:
        self._student = student.eval()
        self._spec = spec

    @property
    def spec(self) -> ModelSpec:
        """The contract of the student."""
        return self._spec

    def score(self, inputs: ModelInputs) -> Scores:
        """Score one sample (batch of 1)."""
        # A copy, because pixels that came straight from a picture are read-only memory.
        tensors = [torch.tensor(inputs[tensor.name]) for tensor in self._spec.inputs()]
        with torch.inference_mode():
            outputs: tuple[Tensor, ...] = self._student(*tensors)
        names = [tensor.name for tensor in self._spec.outputs()]
        return scores_from_outputs(
            {name: output.numpy() for name, output in zip(names, outputs, strict=True)}
        )

    def __enter__(self) -> StudentScorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is held that needs freeing."""


def save_whole(path: Path, content: Any) -> None:
    """Write tensors to disk so that `path` always holds a whole file: the old or the new one.

    Raises MachineError where the disk does not take it.
    """
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        flush(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer raises errors of its own
        partial.unlink(missing_ok=True)
        raise MachineError(
            where=path,
            expected="a disk that takes the weights",
            found=str(error).splitlines()[0],
            do="Free some space, then go on with the same command and --resume.",
        ) from error


def _what_is_at(folder: Path) -> str:
    """Say what a folder without a record is instead."""
    unfinished = folder.with_name(folder.name + UNFINISHED)
    if folder.name.endswith(UNFINISHED) and folder.is_dir():
        return f"a run not yet finished ({_GO_ON})"
    if not folder.exists():
        beside = f"; a run not yet finished is {unfinished} ({_GO_ON})"
        return "no such folder" + (beside if unfinished.is_dir() else "")
    if not folder.is_dir():
        return "a file"
    for file, kind in ((HEADER_FILE, "a recording"), (MANIFEST_FILE, "a bundle")):
        if (folder / file).is_file():
            return kind
    return f"a folder without {RECORD_FILE}"


def _no_run(folder: Path, found: str) -> InputError:
    return InputError(
        where=folder,
        expected=f"a run (a folder with {RECORD_FILE} and {WEIGHTS_FILE})",
        found=found,
        do="Check the path, or make a run with `edge distill`.",
    )
