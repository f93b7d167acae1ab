"""The comparison with modelopt: what it counts is right, and ours is never lost."""

import os
import signal
import sys

import pytest
from benchmarks.machine import spent_by
from benchmarks.modelopt import compared, environment, movement

THEIRS = {"fate": "finished", "seconds": 400.0, "peak_gb": 20.0, "file_gb": 1.2}
OURS = {"fate": "finished", "seconds": 80.0, "peak_gb": 4.0, "file_gb": 0.6, "agreement": 0.99}


def test_memory_of_a_program_is_that_of_all_its_processes_together():
    child = "import time; b = bytearray(80 << 20); print(flush=True); time.sleep(1)"
    words = (
        f"import subprocess, sys; b = bytearray(80 << 20); c = [sys.executable, '-c', {child!r}]"
    )
    done = spent_by([sys.executable, "-c", f"{words}; subprocess.run(c); print('\\nsaid')"])
    assert (done.fate, done.answer) == ("finished", "said")
    assert 160 << 20 < done.peak_bytes < 400 << 20
    assert done.seconds > 1.0


def test_a_program_that_was_killed_tells_its_memory_until_then():
    code = "import os, time; b = bytearray(80 << 20); time.sleep(0.5); os.kill(os.getpid(), 9)"
    done = spent_by([sys.executable, "-c", code])
    assert done.exit_status == -signal.SIGKILL
    assert done.fate.startswith("killed")
    assert done.peak_bytes > 80 << 20


def test_a_program_that_never_ends_is_ended_with_all_that_it_started():
    code = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    done = spent_by([sys.executable, "-c", code], limit_s=0.5)
    assert done.seconds < 20.0
    assert done.exit_status == -signal.SIGKILL


def test_a_program_that_fails_says_why():
    done = spent_by([sys.executable, "-c", "raise SystemExit('no such thing')"])
    assert done.fate == "exit status 1: no such thing"


def test_the_program_that_is_measured_is_the_first_to_go_where_memory_runs_out():
    code = "import time; time.sleep(0.3); print(open('/proc/self/oom_score_adj').read())"
    if not os.access("/proc/self/oom_score_adj", os.W_OK):
        pytest.skip("this system lets nobody say which process goes first")
    assert spent_by([sys.executable, "-c", code]).answer == "1000"


def test_agreement_counts_the_sides_of_the_median():
    found = movement([0.1, 0.2, 0.8, 0.9], [0.1, 0.6, 0.4, 0.9])
    assert found["agreement"] == 0.5
    same = movement([0.1, 0.2, 0.8, 0.9], [0.1, 0.2, 0.8, 0.9])
    assert (same["agreement"], same["moved_log_odds"]) == (1.0, 0.0)


def test_goals_are_held_against_what_was_measured(capsys):
    figures = {"ours": OURS, "modelopt": {**THEIRS, "agreement": 0.9}}
    found = compared(figures, quick=False)
    assert found["ratios"] == {"seconds": 0.2, "peak_gb": 0.2, "file_gb": 0.5}
    assert found["kept"]
    worse = {"ours": OURS | {"agreement": 0.8}, "modelopt": {**THEIRS, "agreement": 0.9}}
    assert not compared(worse, quick=False)["kept"]
    assert "at least as often: MISSED" in capsys.readouterr().out


def test_modelopt_that_was_killed_takes_nothing_of_ours(capsys):
    theirs = {**THEIRS, "fate": "killed, as the system does where memory runs out"}
    assert compared({"ours": OURS, "modelopt": theirs}, quick=False) == {"kept": True}
    assert "at least 20.00 GB until then" in capsys.readouterr().out


def test_a_python_without_modelopt_is_said(monkeypatch):
    monkeypatch.setenv("MODELOPT_PYTHON", "/nowhere/python")
    assert environment() == ("", "is not in /nowhere/python")
