"""The journal on disk: `journal.jsonl`, TensorBoard's files and the picture of the curves.

`journal.jsonl` is the one that is kept exact: a line per record, handed to the system as it is
written, so that a killed process loses none, and forced to the disk whenever the run's state is. A
resumed run cuts the lines beyond the step that it goes on from, and tells TensorBoard to forget
those, so that no step is there twice.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec
import torch

from distill.journal.news import EpochNews, StageNews, StepNews
from edge.artefact import new_file
from edge.errors import EdgeError, MachineError
from edge.recording.format import UNREADABLE_JSON

JOURNAL_FILE = "journal.jsonl"
CURVES_FILE = "curves.png"
TENSORBOARD_FOLDER = "tensorboard"
_DAMAGED_FILE = "journal.damaged.jsonl"
_FIRST_PICTURE_AFTER_S = 60.0  # a run that is done sooner is drawn at its end alone
_DRAWING_SHARE = 0.01  # of the time: a picture waits until the last one's cost is that little

Line = dict[str, Any]
"""A record as it stands in the file: the news' fields, its `kind`, and `_Files`' own.

`at` is in seconds since 1970, `run_step` counts over all stages, the peaks are the process's own so
far (`peak_gpu_bytes` is null without a GPU). A number that is not finite stands as null.
"""


class FileJournal:
    """Writes a run's journal into its folder; `say` takes what a person should know of it."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self._say = say
        self._files: _Files | None = None
        self._next_picture_s = time.monotonic() + _FIRST_PICTURE_AFTER_S

    @contextmanager
    def stage(self, news: StageNews, /) -> Iterator[None]:
        """Cut what is to be done again, write until the stage ends however it ends, then draw."""
        with _disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            before = self._cut(news)
        with ExitStack() as opened:
            self._files = _Files(self.folder, before, news.step)
            opened.callback(self._files.close)
            opened.callback(self.draw)
            self._files.write(news, before + news.step)
            yield

    def step(self, news: StepNews, /) -> None:
        """Write one line, and the same to TensorBoard."""
        files = self._opened()
        run_step = files.before + news.step
        files.write(news, run_step)
        files.plot(run_step, _scalars(news))

    def epoch(self, news: EpochNews, /) -> None:
        """Write one line, and draw the curves where that is little beside the time since."""
        files = self._opened()
        run_step = files.before + news.step
        files.write(news, run_step)
        files.plot(run_step, _epoch_scalars(news))
        if time.monotonic() >= self._next_picture_s:
            self.draw()

    def saved(self, step: int, /) -> None:
        """Force the lines to the disk: what is resumed from must be told, too."""
        self._opened().flush()

    def draw(self) -> None:
        """Draw the curves. A picture is never worth a run: what goes wrong is only said."""
        started = time.monotonic()
        try:
            from distill.journal.curves import draw_curves  # noqa: PLC0415 - heavy, and may lack

            lines, _ = lines_in(self.folder / JOURNAL_FILE)
            with new_file(self.folder / CURVES_FILE, force=True) as partial:
                draw_curves(lines, partial)
        except Exception as error:  # whatever a drawing library may raise
            kind = "" if isinstance(error, EdgeError) else f"{type(error).__name__}: "
            self._say(f"the curves could not be drawn: {kind}{error}")
        took_s = time.monotonic() - started
        self._next_picture_s = time.monotonic() + took_s / _DRAWING_SHARE

    def _cut(self, news: StageNews) -> int:
        """Keep the lines up to where the stage goes on; return the steps of the stages before."""
        path = self.folder / JOURNAL_FILE
        lines, unreadable = lines_in(path)
        if unreadable:
            (self.folder / _DAMAGED_FILE).write_bytes(path.read_bytes())
            self._say(
                f"{path}: {unreadable} of its lines cannot be read and are left out; "
                f"the file as it was is kept as {_DAMAGED_FILE}"
            )
        stages = {line["stage"]: line for line in lines if line["kind"] == "stage"}
        earlier = {name: line for name, line in stages.items() if line["number"] < news.number}
        kept = [
            line
            for line in lines
            if line["stage"] in earlier
            or (line["stage"] == news.stage and _happened_before(line, news.step))
        ]
        if len(kept) < len(lines) or unreadable or not _ends_whole(path):
            with new_file(path, force=True) as partial:
                partial.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in kept))
        return sum(int(line["steps"]) for line in earlier.values())

    def _opened(self) -> _Files:
        assert self._files is not None, "news outside of a stage"
        return self._files


class _Files:
    """What is open while a stage is trained."""

    def __init__(self, folder: Path, before: int, step: int) -> None:
        # Half a second, and not a module that every reader of a journal must have.
        from distill.journal.tensorboard_file import TensorboardFile  # noqa: PLC0415

        self._path = folder / JOURNAL_FILE
        self.before = before  # steps of the stages before this one
        with _disk_errors(folder):
            self._board = TensorboardFile(folder / TENSORBOARD_FOLDER, before + step + 1)
            self._lines: FileIO = self._path.open("ab", buffering=0)

    def close(self) -> None:
        """Close both; all that was told is written already."""
        self._lines.close()
        self._board.close()

    def write(self, news: StageNews | StepNews | EpochNews, run_step: int) -> None:
        """Append one line and hand it to the system at once."""
        line: Line = {
            **msgspec.to_builtins(news),
            "at": round(time.time(), 3),
            "run_step": run_step,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_gpu_bytes": _peak_gpu_bytes(),
        }
        text = msgspec.json.encode(line) + b"\n"
        with _disk_errors(self._path):
            if self._lines.write(text) != len(text):
                raise OSError(errno.ENOSPC, "the line was written in part")

    def plot(self, run_step: int, scalars: dict[str, float]) -> None:
        """Show the values in TensorBoard."""
        with _disk_errors(self._path.parent / TENSORBOARD_FOLDER):
            self._board.write(run_step, scalars)

    def flush(self) -> None:
        """Force the lines to the disk."""
        with _disk_errors(self._path):
            os.fsync(self._lines.fileno())


def lines_in(path: Path) -> tuple[list[Line], int]:
    """Return the records of a journal, and how many of its whole lines are none.

    A last line without its end was cut off by a kill; it is passed over in silence.
    """
    if not path.is_file():
        return [], 0
    *whole, _torn = path.read_bytes().split(b"\n")
    lines: list[Line] = []
    for text in whole:
        try:
            line = msgspec.json.decode(text)
        except UNREADABLE_JSON:
            continue
        if isinstance(line, dict) and {"kind", "stage", "run_step"} <= line.keys():
            lines.append(line)
    return lines, len(whole) - len(lines)


def _happened_before(line: Line, step: int) -> bool:
    """Whether a line of the stage itself lies before where it goes on."""
    if line["kind"] == "stage":
        return bool(line["step"] < step)
    return bool(line["step"] <= step)


def _ends_whole(path: Path) -> bool:
    return not path.is_file() or path.read_bytes()[-1:] in (b"", b"\n")


def _scalars(news: StepNews) -> dict[str, float]:
    gpu_bytes = _peak_gpu_bytes()
    memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "loss/total": news.total,
        **{f"loss/{name}": value for name, value in news.losses.items()},
        "train/learning_rate": news.learning_rate,
        "train/gradient_norm": news.gradient_norm,
        "train/parts_per_second": news.parts_per_second,
        "train/epoch": news.epoch,
        "memory/peak_gib": memory_bytes / 2**30,
        **({} if gpu_bytes is None else {"memory/peak_gpu_gib": gpu_bytes / 2**30}),
    }


def _epoch_scalars(news: EpochNews) -> dict[str, float]:
    scalars = {"epoch/total": news.total}
    scalars.update({f"epoch/{name}": value for name, value in news.losses.items()})
    for use in news.experts:
        scalars[f"experts_taken_by_none/{use.block}"] = use.taken_by_none
        scalars[f"experts_overlap/{use.block}"] = use.overlap
        scalars[f"experts_most_weight/{use.block}"] = max(use.weight_shares)
    return scalars


def _peak_gpu_bytes() -> int | None:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    return torch.cuda.max_memory_allocated()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """A full disk ends the run: its state could not be saved either, so hours would be lost."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO):
            raise
        raise MachineError(
            where=path,
            expected="a disk that takes the run's journal",
            found=str(error),
            do="Free some space, then go on with the same command and --resume.",
        ) from error
