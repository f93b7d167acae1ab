"""What a real run tells of itself, unbroken, killed and resumed."""

import json
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from small_distillation import (
    Order,
    edge_command,
    here,
    quick_recipe,
    quick_words,
    silent,
    small_recording,
)

from distill.journal.journal_file import CURVES_FILE, JOURNAL_FILE, TENSORBOARD_FOLDER, FileJournal
from distill.train import distill
from distill.training.run_folders import RunFolders, make_room
from edge.recording.format import Recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return small_recording(tmp_path_factory.mktemp("journal") / "rec", Order(size=(32, 32)))


def lines_of(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / JOURNAL_FILE).read_bytes().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_a_run_with_experts_tells_their_use_in_the_journal_and_in_its_record(
    recording: Recording, tmp_path: Path
):
    recipe = quick_recipe("student.experts=2", "targets.copies=0")
    folders = RunFolders(tmp_path / "run")
    make_room(folders, recipe, resume=False, force=False)
    record = distill(recording, recipe, folders, silent, FileJournal(folders.unfinished, print))
    epochs = lines_of(folders.final, "epoch")
    assert [epoch["losses"] for epoch in epochs] == list(record.losses_by_epoch)
    (use,) = epochs[-1]["experts"]
    assert use["block"] == "joint_blocks.blocks.0.mlp"
    assert sum(use["token_shares"]) == pytest.approx(1.0)
    assert any("experts of 1 blocks: each takes" in remark for remark in record.remarks)
    steps = lines_of(folders.final, "step")
    assert [step["run_step"] for step in steps] == list(range(1, steps[-1]["steps"] + 1))
    assert (folders.final / CURVES_FILE).is_file()
    assert len(list((folders.final / TENSORBOARD_FOLDER).iterdir())) == 1


def test_a_killed_and_resumed_command_tells_every_step_once(recording: Recording, tmp_path: Path):
    run = tmp_path / "run"
    words = ["distill", recording.folder, "--recipe", "tiny", "--out", run]
    words += quick_words(("train.epochs=20", "targets.copies=0", "train.save_every_s=0.2"))
    child = subprocess.Popen(edge_command(words), env=here(), stderr=subprocess.PIPE)
    unfinished = tmp_path / "run.unfinished"
    limit_s = time.monotonic() + 120
    while not ((unfinished / JOURNAL_FILE).is_file() and len(lines_of(unfinished, "step")) > 8):
        assert child.poll() is None, child.stderr.read().decode()
        assert time.monotonic() < limit_s
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    told = len(lines_of(unfinished, "step"))
    done = subprocess.run(
        edge_command([*words, "--resume"]), env=here(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    steps = lines_of(run, "step")
    assert len(steps) == steps[0]["steps"] > told
    assert set(Counter(step["run_step"] for step in steps).values()) == {1}
    begun, resumed = lines_of(run, "stage")
    assert begun["step"] == 0
    assert 0 < resumed["step"] <= told
