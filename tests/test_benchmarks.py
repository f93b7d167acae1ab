"""The benchmarks themselves: that each can be called, and that what they count is right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.machine import Usage, percentiles
from small_station import needs_mosquitto

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "tests" / "benchmarks"


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmarks", *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_every_benchmark_is_registered_and_told_in_the_help():
    told = bench("--help").stdout
    modules = {
        path.stem
        for path in FOLDER.glob("*.py")
        if re.search(r"^def (run|measure)\(", path.read_text(), re.MULTILINE)
    }
    assert modules, "the folder is where this test looks"
    assert {name for name in modules if f"\n  {name} " in told} == modules


def test_a_benchmark_that_is_not_there_is_refused_by_name():
    done = bench("ballscrw")
    assert done.returncode == 2
    assert "ballscrew" in done.stderr


@needs_mosquitto
@pytest.mark.timeout(60)
def test_a_few_stations_on_one_broker_lose_nothing():
    measured = "import json; from tests.benchmarks.fleet import measure as m; "
    command = [sys.executable, "-c", measured + "print(json.dumps(m(12, 2.0)))"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["sent"] == pytest.approx(12 * 2.0 * 2, abs=12)
    assert figures["received"] == figures["acknowledged"] == figures["sent"]
    assert (figures["lost"], figures["missing"], figures["foreign"]) == (0, 0, 0)
    assert figures["latency_ms"]["max"] >= figures["latency_ms"]["p50"] > 0


def test_percentiles_of_known_values():
    told = percentiles(np.arange(1.0, 1001.0))
    assert (told["p50"], told["max"]) == (500.5, 1000.0)
    assert np.isnan(percentiles(np.asarray([]))["p99"])


def test_a_process_that_is_gone_has_spent_nothing_and_a_busy_one_has():
    child = subprocess.Popen([sys.executable, "-c", "sum(range(10**7)); input()"], stdin=-1)
    try:
        deadline = 200
        while Usage.of(child.pid).cpu_s == 0 and deadline:
            child.poll()
            deadline -= 1
            subprocess.run(["sleep", "0.05"])
        assert Usage.of(child.pid).cpu_s > 0
        assert Usage.of(child.pid).rss_bytes > 1 << 20
    finally:
        child.kill()
        child.communicate()
    assert Usage.of(child.pid) == Usage(0.0, 0)


@pytest.mark.timeout(60)
def test_a_second_of_the_hot_loop_ends_with_every_part_durable():
    measured = "import json; from tests.benchmarks.hot_loop import measure as m; "
    command = [sys.executable, "-c", measured + "print(json.dumps(m(1.0, rate=20.0)))"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["durable"] == figures["asked"] > 0
    assert figures["p99_ms"] >= figures["p50_ms"] > 0
