"""Several processes on one student, started as a person starts them."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_distillation import ROOT, Order, edge, here, quick_words, small_recording
from small_training import BARE, weights_of

from distill.checkpoint import read_record
from distill.launch.__main__ import config_path
from edge.recording.format import Recording

SETTINGS = (*BARE, "train.epochs=2", "train.min_steps_per_epoch=4", "train.ema_decay=0.9")
SHARDED = str(ROOT / "tests" / "sharded_on_cpu.py")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return small_recording(tmp_path_factory.mktemp("processes") / "rec", Order(size=(32, 32)))


def words_for(recording: Recording, out: Path, *settings: str) -> list[str]:
    words = ["distill", recording.folder, "--recipe", "tiny", "--out", out]
    return [*map(str, words), *quick_words((*SETTINGS, *settings))]


def launch(config: str, *words: str) -> subprocess.Popen:
    """Start two processes; port 0 lets the system choose, so that tests may run side by side."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    options = ["--config_file", str(config_path(config)), "--main_process_port", "0"]
    return subprocess.Popen(
        [*command, *options, *words],
        env={**here(), "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-4000:]
    return out


@pytest.fixture(scope="module")
def alone(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that works through the same pieces."""
    out = tmp_path_factory.mktemp("alone") / "run"
    done = edge(*words_for(recording, out, "train.accumulate=2"), env=here())
    assert done.returncode == 0, done.stderr
    return out


def assert_same_course(run: Path, other: Path) -> None:
    pairs = zip(read_record(run).losses_by_epoch, read_record(other).losses_by_epoch, strict=True)
    for one, theirs in pairs:
        assert one == pytest.approx(theirs, abs=1e-4)
    weights = weights_of(other)
    for name, tensor in weights_of(run).items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-4, rtol=1e-3)


def test_two_processes_have_the_losses_and_weights_of_one(
    recording: Recording, alone: Path, tmp_path: Path
):
    out = tmp_path / "run"
    said = finished(launch("ddp", "-m", "edge.cli.main", *words_for(recording, out)))
    assert said.count("distilled from") == 1, "one of them speaks"
    assert_same_course(out, alone)
    assert {path.name for path in out.iterdir()} >= {"run.json", "student.pt", "targets"}


def test_a_sharded_run_that_is_stopped_and_resumed_has_the_losses_and_weights_of_one_process(
    recording: Recording, alone: Path, tmp_path: Path
):
    out = tmp_path / "run"
    words = [SHARDED, *words_for(recording, out)]
    process = launch("fsdp2", *words)
    states = tmp_path / "run.unfinished" / "state"
    deadline = time.monotonic() + 120
    while not list(states.glob("stage-1-step-00000[4-7]")):
        assert process.poll() is None, process.communicate()[1][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert not out.exists()
    (state,) = [path for path in states.iterdir() if path.suffix != ".partial"]
    assert (state / "pytorch_model_fsdp_0" / ".metadata").is_file(), "it was sharded"
    finished(launch("fsdp2", *words, "--resume"))
    assert_same_course(out, alone)


def test_what_is_wrong_is_said_once(recording: Recording, tmp_path: Path):
    words = words_for(recording, tmp_path / "run", "threshold.split='nosuch'")
    process = launch("ddp", "-m", "edge.cli.main", *words)
    _, said = process.communicate(timeout=120)
    assert process.returncode
    assert len(re.findall(r"^edge: ", said, re.MULTILINE)) == 1, said


def test_sharding_over_cpus_is_refused_where_accelerate_would_not_shard(
    recording: Recording, tmp_path: Path
):
    process = launch("fsdp2", "-m", "edge.cli.main", *words_for(recording, tmp_path / "run"))
    _, said = process.communicate(timeout=120)
    assert process.returncode
    assert "Take ddp.yaml" in said
