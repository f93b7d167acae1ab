"""The state of a run that is under way: written whole, one folder for each, the newest counts.

    STATE/stage-2-step-000400/        stage 2 of the recipe after 400 steps
        position.json                 where that is, and the digest of every other file
        ...                           accelerate's: weights, optimizer, the average, scaler
    STATE/stage-3-step-000000/
        position.json
        student.pt                    stage 3 begins: the weights are all there is

A folder is filled under another name, flushed and renamed; only then the one before is deleted.
"""

from __future__ import annotations

import errno
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor

from distill.students.student import Student
from edge.artefact import digest_of_file, flush
from edge.errors import InputError, MachineError

POSITION_FILE = "position.json"
STUDENT_FILE = "student.pt"
_NAME = re.compile(r"stage-(\d+)-step-(\d+)")
_PARTIAL = ".partial"
_LEFT_BEHIND = (_PARTIAL, ".old")


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a run is. Random numbers need no place here: they follow from it."""

    stage: int = 0  # of the recipe's, from 0
    step: int = 0  # steps of that stage that are done
    losses_by_epoch: tuple[dict[str, float], ...] = ()  # of all stages so far
    sums: dict[str, float] = {}  # each loss, summed over the epoch under way
    remarks: tuple[str, ...] = ()
    processes: str = ""  # that wrote it: how many of which kind
    files: dict[str, str] = {}  # the digest of each

    @property
    def name(self) -> str:
        """Of the folder that holds it."""
        return f"stage-{self.stage + 1}-step-{self.step:06d}"

    def after_step(self, losses: dict[str, float]) -> Position:
        """Return the position one step further."""
        sums = {name: self.sums.get(name, 0.0) + loss for name, loss in losses.items()}
        return msgspec.structs.replace(self, step=self.step + 1, sums=sums)

    def after_epoch(self, steps: int) -> Position:
        """Return the same position, with the epoch's sums made an average over its `steps`."""
        averages = {name: total / steps for name, total in self.sums.items()}
        return msgspec.structs.replace(
            self, losses_by_epoch=(*self.losses_by_epoch, averages), sums={}
        )


@dataclass(frozen=True)
class SavedStates:
    """The folder of a run's states."""

    folder: Path

    def newest(self) -> Position | None:
        """Return the position of the newest whole state, or None. Raises InputError."""
        whole = [path for path in self.folder.glob("stage-*") if _NAME.fullmatch(path.name)]
        if not whole:
            return None
        newest = max(whole, key=lambda path: _place_of(path.name))
        with _unreadable(newest):
            return msgspec.json.decode((newest / POSITION_FILE).read_bytes(), type=Position)

    def check(self, position: Position) -> None:
        """Read every file of a state once. Raises InputError where one is not as it was."""
        folder = self.folder / position.name
        for name, digest in position.files.items():
            path = folder / name
            if not path.is_file() or digest_of_file(path) != digest:
                raise _corrupt(path, "other content" if path.is_file() else "nothing")

    def write(self, accelerator: Accelerator, position: Position) -> None:
        """Write everything that is trained, from all processes. Raises MachineError."""
        partial = self._emptied(accelerator, position)
        with self._disk_errors(partial):
            accelerator.save_state(str(partial), safe_serialization=False)
        self._finish(accelerator, position, partial)

    def write_weights(
        self, accelerator: Accelerator, position: Position, weights: dict[str, Tensor]
    ) -> None:
        """Write a student between two stages. Raises MachineError."""
        partial = self._emptied(accelerator, position)
        if accelerator.is_main_process:
            with self._disk_errors(partial):
                torch.save(weights, partial / STUDENT_FILE)
        self._finish(accelerator, position, partial)

    def load(self, accelerator: Accelerator, position: Position) -> None:
        """Load what `write` wrote into what accelerate prepared. Raises InputError."""
        folder = self.folder / position.name
        if position.processes != processes_text(accelerator):
            raise InputError(
                where=folder,
                expected=f"the processes that wrote it ({position.processes})",
                found=processes_text(accelerator),
                do="Resume with as many processes and the same config file.",
            )
        with _unreadable(folder):
            accelerator.load_state(str(folder))
        accelerator.step = 0  # a state is always between two steps, never between two pieces

    def load_weights(self, student: Student, position: Position) -> None:
        """Load what `write_weights` wrote. Raises InputError."""
        path = self.folder / position.name / STUDENT_FILE
        with _unreadable(path):
            # Mapped, so that they are not in memory twice.
            student.load_state_dict(
                torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            )

    def _emptied(self, accelerator: Accelerator, position: Position) -> Path:
        partial = self.folder / (position.name + _PARTIAL)
        if accelerator.is_main_process:
            for path in self.folder.glob("*"):
                if path.suffix in _LEFT_BEHIND:  # by a killed run
                    shutil.rmtree(path)
            with self._disk_errors(partial):
                partial.mkdir(parents=True)
        accelerator.wait_for_everyone()
        return partial

    def _finish(self, accelerator: Accelerator, position: Position, partial: Path) -> None:
        """Make it whole, then delete the ones before."""
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with self._disk_errors(partial):
                _seal(partial, position, processes_text(accelerator))
            before = [path for path in self.folder.glob("stage-*") if path != partial]
            partial.rename(self.folder / position.name)
            flush(self.folder)
            for path in before:
                # Not in place: a half deleted folder must not pass for a state.
                path.rename(path.with_suffix(".old"))
                shutil.rmtree(path.with_suffix(".old"))
        accelerator.wait_for_everyone()

    @contextmanager
    def _disk_errors(self, partial: Path) -> Iterator[None]:
        """Say what a full disk means here. torch's writers raise it as errors of their own."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if "DataLoader worker" in str(error):  # it died meanwhile, see `pieces`
                raise
            if isinstance(error, torch.OutOfMemoryError):  # a GPU's, while a share is gathered
                raise
            shutil.rmtree(partial, ignore_errors=True)
            before = (
                "the state before this one is still there" if self.newest() else "from the start"
            )
            raise MachineError(
                where=self.folder,
                expected="a disk that takes the run's state",
                found=_refusal(error, self.folder),
                do=f"Free some space, then go on with the same command and --resume: {before}.",
            ) from error


def processes_text(accelerator: Accelerator) -> str:
    """Say how many processes of which kind train together."""
    return f"{accelerator.num_processes} x {accelerator.distributed_type.value}"


def _seal(partial: Path, position: Position, processes: str) -> None:
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    digests = {str(path.relative_to(partial)): digest_of_file(path) for path in files}
    sealed = msgspec.structs.replace(position, processes=processes, files=digests)
    (partial / POSITION_FILE).write_bytes(msgspec.json.encode(sealed))
    for path in [*files, partial / POSITION_FILE, partial]:
        flush(path)


def _place_of(name: str) -> tuple[int, int]:
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found[1]), int(found[2])


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        OSError,
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
        pickle.UnpicklingError,
        msgspec.DecodeError,
        SafetensorError,
    ) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise
        raise _corrupt(path, _first_line(error)) from None


def _corrupt(path: Path, found: str) -> InputError:
    return InputError(
        where=path,
        expected="the state of a run, as it was written",
        found=found,
        do="Distil again with --force instead of --resume, or put back a copy of the state.",
    )


def _refusal(error: BaseException, folder: Path) -> str:
    """Say why a write failed; torch's writers tell where in their own code, which helps nobody."""
    if isinstance(error, OSError):
        return _first_line(error)
    there = folder if folder.exists() else folder.parent
    return f"a write that was refused, {shutil.disk_usage(there).free:,} bytes free"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
