"""Where a run lives: `RUN.unfinished` while it is under way, `RUN` when it is done."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from distill.checkpoint import RECORD_FILE, UNFINISHED
from distill.recipe import Recipe, Stage
from distill.targets.folder import INDEX_FILE, take
from distill.training.saved_state import Position, SavedStates
from edge.artefact import beside, check_free, disk_errors, new_file
from edge.errors import InputError
from edge.recording.format import Recording

RECIPE_FILE = "recipe.json"
_LOCK_FILE = "writer.lock"
_STATE_FOLDER = "state"


@dataclass(frozen=True)
class RunFolders:
    """Where a run comes from, where it goes, and where it lives until it is done."""

    final: Path
    targets: Path | None = None  # None: inside the run
    init_from: Path | None = None  # public weights that the student starts from
    opened: Mapping[Path, Recording] = field(default_factory=dict)
    """Recordings of stages that are not to be read whole, by their folders."""
    learns_from: str = ""  # names the recording, and the run that is adapted: a resume's must be so

    @property
    def unfinished(self) -> Path:
        """The folder of a run that is under way."""
        return beside(self.final, UNFINISHED)

    @property
    def states(self) -> SavedStates:
        """What a resume goes on from."""
        return SavedStates(self.unfinished / _STATE_FOLDER)

    def targets_of(self, stage: Stage) -> Path:
        """Return the folder of one stage's targets."""
        return (self.targets or self.unfinished / "targets") / stage.name


def make_room(folders: RunFolders, recipe: Recipe, *, resume: bool, force: bool) -> None:
    """Check the way to the output before any work, and clear it where `force` says so."""
    check_free(folders.final, force=force, mark=RECORD_FILE)
    if folders.targets is not None:
        _refuse_foreign(folders.targets)
    noted = folders.unfinished / RECIPE_FILE
    _refuse_no_run(folders.unfinished)
    if folders.unfinished.exists() and not resume:
        if not force and _worked_in(folders.unfinished):
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
            expected="the recording and the options that the run began with",
            found="another recording, recipe, run, --set, --teacher or --init-from",
            do="Resume with the very same command, or begin again with --force.",
        )


@contextlib.contextmanager
def only_writer(folders: RunFolders) -> Iterator[None]:
    """Keep other processes from the unfinished run; a killed one lets go by itself. InputError.

    Where nothing was begun within the block, nothing is left behind.
    """
    path = folders.unfinished / _LOCK_FILE
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    with lock:
        if not take(lock):
            raise _busy(path.parent)
        try:
            yield
        finally:
            if path.is_file() and not _worked_in(path.parent):
                path.unlink()
                with contextlib.suppress(OSError):
                    path.parent.rmdir()


def _busy(unfinished: Path) -> InputError:
    return InputError(
        where=unfinished,
        expected="a run that nobody is training",
        found="another process that is",
        do="Wait until it is done or stop it, or choose another --out.",
    )


def _refuse_no_run(unfinished: Path) -> None:
    """Refuse what stands where the run will live and is none, or is being trained. InputError."""
    if not os.path.lexists(unfinished):
        return
    if not unfinished.is_dir() or (
        _worked_in(unfinished) and not (unfinished / RECIPE_FILE).is_file()
    ):
        raise InputError(
            where=unfinished,
            expected="nothing, or a run that was stopped: there a run lives until it is done",
            found="something else",
            do="Choose another --out, or move it away.",
        )
    if (unfinished / _LOCK_FILE).is_file():
        with (unfinished / _LOCK_FILE).open("a") as lock:
            if not take(lock):
                raise _busy(unfinished)


def _worked_in(unfinished: Path) -> bool:
    """Whether there is more than the beginning of a run."""
    ours = (RECIPE_FILE, _LOCK_FILE)
    return any(
        path.name not in ours and not path.name.startswith(f".{RECIPE_FILE}.")
        for path in unfinished.iterdir()
    )


def _refuse_foreign(targets: Path) -> None:
    """Refuse to put targets among other things, such as into a recording."""
    if not targets.exists():
        return
    inside = list(targets.iterdir()) if targets.is_dir() else [targets]
    other = [path.name for path in inside if not (path / INDEX_FILE).is_file() and not _empty(path)]
    if other:
        raise InputError(
            where=targets,
            expected="a folder of targets, or one that is new or empty",
            found=f"'{min(other)}' in it",
            do="Name another --targets folder.",
        )


def _empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def begin(folders: RunFolders, recipe: Recipe) -> None:
    """Make the folder of the unfinished run; it says which recipe a resume must have."""
    folders.unfinished.mkdir(parents=True, exist_ok=True)
    with new_file(folders.unfinished / RECIPE_FILE, force=True) as partial:
        partial.write_bytes(_beginning(folders, recipe))


def refuse_unshared(folders: RunFolders) -> None:
    """Refuse a machine that does not see what the main process's machine wrote. InputError."""
    if not (folders.unfinished / RECIPE_FILE).is_file():
        raise InputError(
            where=folders.unfinished,
            expected="the run's folder, which the main process has just made",
            found="nothing, on a machine that should share it",
            do="Put --out (and --targets) on a disk that all machines see by the same path.",
        )


def finish(folders: RunFolders) -> None:
    """Give the run its name; then drop what only a resume needs, for until then one may come.

    Raises InputError where something else took its place while it was trained.
    """
    if os.path.lexists(folders.final):
        if not (folders.final / RECORD_FILE).is_file():
            raise InputError(
                where=folders.final,
                expected="nothing, as there was when the training began",
                found="something that is no run",
                do="Move it away, and say the same command with --resume: all of the training is "
                f"saved in {folders.unfinished}.",
            )
        shutil.rmtree(folders.final)
    folders.unfinished.rename(folders.final)
    shutil.rmtree(folders.final / _STATE_FOLDER, ignore_errors=True)
    for name in (RECIPE_FILE, _LOCK_FILE):
        (folders.final / name).unlink(missing_ok=True)


def saved_text(folders: RunFolders, recipe: Recipe) -> str:
    """Say how much of an unfinished run is saved."""
    position = folders.states.newest() or Position()
    stages = recipe.all_stages()
    if position.stage == len(stages):
        return "all of the training is saved"
    if not position.step:
        return f"stage '{stages[position.stage].name}' had not begun"
    return f"{position.step} steps of stage '{stages[position.stage].name}' are saved"


def _beginning(folders: RunFolders, recipe: Recipe) -> bytes:
    """What a resumed run must have in common with the one that was stopped."""
    start = None if folders.init_from is None else str(folders.init_from.resolve())
    said = {"recipe": recipe, "init_from": start, "learns_from": folders.learns_from}
    return msgspec.json.encode(said)
