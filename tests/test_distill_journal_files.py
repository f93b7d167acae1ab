"""What a run leaves behind of its course: after a kill, after a resume, and on a bad disk."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill.journal.journal_file import (
    CURVES_FILE,
    JOURNAL_FILE,
    TENSORBOARD_FOLDER,
    FileJournal,
    lines_in,
)
from distill.journal.news import AllOf, EpochNews, StageNews, StepNews
from distill.students.expert_use import ExpertUse
from edge.errors import MachineError

STEPS = 8


def stage(name: str = "line", number: int = 1, *, step: int = 0) -> StageNews:
    return StageNews(name, number, 2, step, STEPS, 2)


def step(number: int, name: str = "line", *, total: float = 1.0) -> StepNews:
    losses = {"map": total / 2, "labels": 0.0}
    return StepNews(name, 1, number, STEPS, losses, total, 1e-3, 0.5, 40.0)


def epoch(number: int, name: str = "line") -> EpochNews:
    use = ExpertUse("blocks.0.mlp", (0.5, 0.5), (0.7, 0.3), 0.1, 0.4, 0.25)
    return EpochNews(name, number, number * STEPS // 2, {"map": 0.4}, 0.8, 41.0, (use,))


def train(journal: FileJournal, news: StageNews, until: int, *, total: float = 1.0) -> None:
    with journal.stage(news):
        for number in range(news.step + 1, until + 1):
            journal.step(step(number, news.stage, total=total))
            if number % (STEPS // 2) == 0:
                journal.epoch(epoch(number * 2 // STEPS, news.stage))
                journal.saved(number)


def told(folder: Path, kind: str = "step") -> list[tuple[str, int]]:
    lines, unreadable = lines_in(folder / JOURNAL_FILE)
    assert not unreadable
    return [(line["stage"], line["step"]) for line in lines if line["kind"] == kind]


def in_tensorboard(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder / TENSORBOARD_FOLDER))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_a_whole_run_is_told_in_lines_in_tensorboard_and_in_a_picture(tmp_path: Path, capsys):
    journal = FileJournal(tmp_path, print)
    train(journal, stage("general", 1), STEPS)
    train(journal, stage("line", 2), STEPS)
    assert told(tmp_path) == [(name, n + 1) for name in ("general", "line") for n in range(STEPS)]
    assert [at for at, _ in in_tensorboard(tmp_path, "loss/map")] == list(range(1, 2 * STEPS + 1))
    assert in_tensorboard(tmp_path, "experts_taken_by_none/blocks.0.mlp")[-1] == (
        2 * STEPS,
        pytest.approx(0.1),
    )
    last = json.loads((tmp_path / JOURNAL_FILE).read_bytes().splitlines()[-1])
    assert last["kind"] == "epoch"
    assert last["run_step"] == 2 * STEPS
    assert last["peak_memory_bytes"] > 1e6
    assert last["experts"][0]["token_shares"] == [0.5, 0.5]
    assert (tmp_path / CURVES_FILE).read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr() == ("", "")


def test_a_killed_process_loses_no_step_that_it_told(tmp_path: Path):
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from test_distill_journal_files import FileJournal, stage, step\n"
        "journal = FileJournal(Path(sys.argv[1]), print)\n"
        "with journal.stage(stage()):\n"
        "    for number in range(1, 6): journal.step(step(number))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    tests = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert told(tmp_path) == [("line", number) for number in range(1, 6)]
    assert [at for at, _ in in_tensorboard(tmp_path, "loss/total")] == list(range(1, 6))


def test_a_resumed_run_tells_no_step_twice(tmp_path: Path):
    journal = FileJournal(tmp_path, print)
    train(journal, stage("general", 1), STEPS, total=3.0)
    train(journal, stage("line", 2), 6, total=2.0)  # saved at step 4, stopped after step 6
    train(FileJournal(tmp_path, print), stage("line", 2, step=4), STEPS, total=1.0)
    every = [(name, n + 1) for name in ("general", "line") for n in range(STEPS)]
    assert told(tmp_path) == every
    assert told(tmp_path, "stage") == [("general", 0), ("line", 0), ("line", 4)]
    assert told(tmp_path, "epoch") == [(name, n) for name in ("general", "line") for n in (4, 8)]
    shown = in_tensorboard(tmp_path, "loss/total")
    assert [at for at, _ in shown] == list(range(1, 2 * STEPS + 1))
    assert [value for _, value in shown] == [3.0] * STEPS + [2.0] * 4 + [1.0] * 4


def test_a_run_stopped_before_its_first_save_begins_its_journal_again(tmp_path: Path):
    train(FileJournal(tmp_path, print), stage(), 3)
    train(FileJournal(tmp_path, print), stage(), 2)
    assert told(tmp_path) == [("line", 1), ("line", 2)]
    assert told(tmp_path, "stage") == [("line", 0)]


def test_a_line_that_a_kill_cut_off_is_no_line(tmp_path: Path):
    train(FileJournal(tmp_path, print), stage(), 4)
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(path.read_bytes() + b'{"kind":"step","sta')
    train(FileJournal(tmp_path, pytest.fail), stage(step=4), 5)
    assert told(tmp_path) == [("line", number) for number in range(1, 6)]


@pytest.mark.parametrize(
    "damage", [b"\x00\x00\x00", b'{"kind": "step"}', b"[]", b"\xff\xfe{}", b'{"a": "\xff"}']
)
def test_a_damaged_journal_is_kept_aside_and_told_of(tmp_path: Path, damage: bytes):
    train(FileJournal(tmp_path, print), stage(), 4)
    path = tmp_path / JOURNAL_FILE
    damaged = path.read_bytes().replace(b"\n", b"\n" + damage + b"\n", 1)
    path.write_bytes(damaged)
    said: list[str] = []
    train(FileJournal(tmp_path, said.append), stage(step=4), 5)
    assert told(tmp_path) == [("line", number) for number in range(1, 6)]
    assert "1 of its lines cannot be read" in said[0]
    assert (tmp_path / "journal.damaged.jsonl").read_bytes() == damaged


def test_a_loss_that_is_not_finite_stands_as_null_and_is_drawn_as_a_gap(tmp_path: Path):
    said: list[str] = []
    journal = FileJournal(tmp_path, said.append)
    with journal.stage(stage()):
        journal.step(step(1))
        journal.step(step(2, total=math.nan))
        journal.step(step(3, total=math.inf))
    lines, _ = lines_in(tmp_path / JOURNAL_FILE)
    assert [line["total"] for line in lines[1:]] == [1.0, None, None]
    assert (tmp_path / CURVES_FILE).is_file()
    assert said == []


def test_a_picture_that_cannot_be_drawn_ends_no_run_and_is_said(tmp_path: Path):
    (tmp_path / CURVES_FILE).mkdir(parents=True)
    said: list[str] = []
    train(FileJournal(tmp_path, said.append), stage(), STEPS)
    assert len(told(tmp_path)) == STEPS
    assert said
    assert all("the curves could not be drawn" in text for text in said)


def test_a_full_disk_is_told_in_words(tmp_path: Path):
    (tmp_path / JOURNAL_FILE).symlink_to("/dev/full")
    with (
        pytest.raises(MachineError, match=r"No space left.*--resume"),
        FileJournal(tmp_path, lambda _: None).stage(stage()),
    ):
        pytest.fail("the first line was taken")


def test_what_goes_wrong_in_the_loop_comes_out_as_it_is(tmp_path: Path):
    def interrupted(error: BaseException) -> Callable[[], None]:
        with FileJournal(tmp_path, print).stage(stage()):
            raise error

    for error in (KeyboardInterrupt(), OSError(28, "of the loop's own")):
        with pytest.raises(type(error)):
            interrupted(error)
    assert (tmp_path / CURVES_FILE).is_file()


def test_several_listeners_hear_the_same_and_none_is_fine(tmp_path: Path):
    folders = [tmp_path / "a", tmp_path / "b"]
    both = AllOf([FileJournal(folder, print) for folder in folders])
    train(both, stage(), 4)
    train(AllOf(), stage(), 4)
    assert told(folders[0]) == told(folders[1]) == [("line", number) for number in range(1, 5)]


def test_curves_are_drawn_while_a_long_run_goes_on(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("distill.journal.journal_file._FIRST_PICTURE_AFTER_S", 0.0)
    journal = FileJournal(tmp_path, print)
    with journal.stage(stage()):
        journal.step(step(1))
        journal.epoch(epoch(1))
        assert (tmp_path / CURVES_FILE).is_file()
        (tmp_path / CURVES_FILE).unlink()
        journal.epoch(epoch(2))  # so soon after, a picture would take too much of the time
        assert not (tmp_path / CURVES_FILE).exists()
