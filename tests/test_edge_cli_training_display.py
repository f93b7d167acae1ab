"""How a training run is shown: on a terminal, in a log, and in the processes that keep quiet."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distill.journal.news import StageNews, StepNews
from edge.cli import training_display
from edge.cli.progress import Progress
from edge.cli.training_display import Course, Lines, Trend, display, duration, journal_for

STAGE = StageNews("line", 2, 2, 0, 40, 4, {"map": 10.0, "window": 1.0, "summary": 0.0})


def step(number: int, steps: int = 40) -> StepNews:
    losses = {"map": 1.0 / number, "window": 0.0, "summary": 1.0}
    return StepNews("line", 1, number, steps, losses, 2.0 / number, 1e-3, 0.5, 31.4)


def test_a_stage_that_is_done_at_once_says_nothing(capsys):
    lines = Lines()
    with lines.stage(STAGE):
        for number in range(1, 41):
            lines.step(step(number))
            lines.saved(number)
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_line_when_one_is_due(capsys, monkeypatch):
    monkeypatch.setattr(training_display, "_FIRST_LINE_AFTER_S", 0.0)
    lines = Lines()
    with lines.stage(STAGE):
        lines.saved(0)
        for number in range(1, 11):
            lines.step(step(number))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1  # the next one is due ten seconds later
    assert "stage 'line' (2 of 2), epoch 1 of 4, step 1 of 40; total 2, map 1;" in told[0]
    assert "31.4 parts/s" in told[0]
    assert " left; saved at step 0" in told[0]


def test_time_left_is_of_this_stage_and_from_where_it_was_resumed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(training_display.time, "monotonic", lambda: now[0])
    course = Course(StageNews("general", 1, 2, 20, 40, 4))
    assert course.save() == "resumed at step 20"
    now[0] += 50.0
    course.step(step(30))
    assert course.speed() == "31.4 parts/s, 50 s left in this stage"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (18720, "5 h 12 min")],
)
def test_a_duration_is_said_as_a_person_reads_it(seconds: float, text: str):
    assert duration(seconds) == text


def test_a_trend_of_any_length_fits_and_shows_where_it_went():
    trend = Trend()
    for number in range(1, 5001):
        trend.add(1.0 / number)
    bars = trend.bars()
    assert 6 <= len(bars) <= 24
    assert bars[0] == "█"
    assert bars[-1] == "▁"
    trend = Trend()
    for value in (1.0, float("nan"), 2.0):
        trend.add(value)
    assert trend.bars() == "▁ █"


def test_only_the_first_process_of_many_shows_and_writes(monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr("edge.cli.progress._FIRST_LINE_AFTER_S", 0.0)
    journal = journal_for(tmp_path / "run")
    with journal.stage(STAGE):
        journal.step(step(1))
    assert list(Progress("reading")([1, 2])) == [1, 2]
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_there_are_lines(monkeypatch):
    assert isinstance(display(), Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert isinstance(display(), Lines)


def test_a_terminal_shows_losses_in_place_and_is_left_as_it_was():
    program = (
        "import time\n"
        "from test_edge_cli_training_display import STAGE, display, step\n"
        "journal = display()\n"
        "with journal.stage(STAGE):\n"
        "    for number in range(1, 41): journal.step(step(number)); time.sleep(0.03)\n"
        "    journal.saved(40); time.sleep(0.6)\n"
    )
    tests = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}", "TERM": "xterm"}
    environment |= {"COLUMNS": "100", "LINES": "30", "LANG": "C.UTF-8"}
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        seen += chunk
    os.close(ours)
    assert child.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    assert "stage 'line' (2 of 2), epoch 1 of 4, step 40 of 40" in text
    assert re.search(r"total +0\.05 +█", text)
    assert "window" not in text  # a loss that stays 0 is not learned,
    assert "summary" not in text  # nor is one without a weight
    assert "saved at step 40" in text
    assert seen.decode().count("\x1b[?25l") == seen.decode().count("\x1b[?25h") == 1  # the cursor
