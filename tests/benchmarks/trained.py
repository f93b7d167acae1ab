"""Students trained on ballscrew for a comparison: the same commands that a person would type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.ballscrew import DATA

SENSORS = ("--sensor", "drive_end:g:12000", "fan_end:g:12000")
THREADS = 2


def lacking() -> str:
    """Say what is missing for a training on ballscrew; nothing is."""
    source = DATA / "ballscrew"
    return "" if source.is_dir() else f"no {source} (set EDGE_DATA to the data's folder)"


def import_ballscrew(out: Path) -> None:
    edge("import", "folder", DATA / "ballscrew", *SENSORS, "--out", out)


def distil(
    recording: Path, recipe: str, overrides: Sequence[str], out: Path, targets: Path
) -> float:
    """Train one student, replacing what stands at `out`; return its wall seconds."""
    changed = [word for override in overrides for word in ("--set", override)]
    words = ["distill", recording, "--recipe", recipe, *changed, "--targets", targets]
    return edge(*words, "--out", out, "--force")


def evaluation(trained: Path, recording: Path) -> dict:
    command = [sys.executable, "-m", "edge.cli.main", "evaluate", trained, recording, "--json"]
    done = subprocess.run(
        list(map(str, command)), check=True, stdout=subprocess.PIPE, env=_environment()
    )
    return json.loads(done.stdout)


def journal(trained: Path) -> list[dict]:
    """Return what a run told of itself."""
    return [json.loads(line) for line in (trained / "journal.jsonl").read_bytes().splitlines()]


def edge(*words: object) -> float:
    print("$ edge " + " ".join(map(str, words)), flush=True)
    command = [sys.executable, "-m", "edge.cli.main", *map(str, words)]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=_environment())
    return time.monotonic() - started


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(THREADS), "TRANSFORMERS_VERBOSITY": "error"}
