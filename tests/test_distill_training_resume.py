"""Trainings that are killed, interrupted or robbed of their disk, and what is left of them."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
import torch
from small_distillation import Order, edge_command, here, quick_words, small_recording
from small_training import (
    BARE,
    EVERY_STEP,
    assert_same_weights,
    bare_recipe,
    killed_once,
    trained,
    with_general_stage,
)
from test_device_agents_outbox_faults import fill_disk, small_disk  # noqa: F401 - a fixture

from distill.checkpoint import read_record
from distill.journal.news import AllOf
from distill.training.run_folders import RunFolders, make_room
from distill.training.saved_state import POSITION_FILE
from edge.cli.main import main
from edge.errors import InputError, MachineError
from edge.recording.format import Recording

RECIPE = bare_recipe(
    "train.epochs=3", "train.min_steps_per_epoch=5", "train.ema_decay=0.9", EVERY_STEP
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The killed runs have one, and bits may differ between one and two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return small_recording(tmp_path_factory.mktemp("resume") / "rec", Order(size=(32, 32)))


@pytest.fixture(scope="module")
def two_stages(recording: Recording):
    return with_general_stage(RECIPE, recording)


@pytest.fixture(scope="module")
def unbroken(recording: Recording, two_stages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    trained(recording, out, two_stages)
    return out


class StopsAt(AllOf):
    """A journal that does something when a step is saved."""

    def __init__(self, step: int, act) -> None:
        super().__init__()
        self.step_saved, self.act = step, act

    def saved(self, step: int, /) -> None:
        if step == self.step_saved:
            self.act()


def states_in(out: Path) -> list[str]:
    return sorted(path.name for path in RunFolders(out).states.folder.glob("*"))


def is_target_begun(out: Path) -> bool:
    return (out.with_name("run.unfinished") / "targets" / "general" / "index.json").exists()


def is_within(stage: int, out: Path) -> bool:
    return any(
        name.startswith(f"stage-{stage}-") and not name.endswith(("000000", ".partial"))
        for name in states_in(out)
    )


def is_writing_state(out: Path) -> bool:
    return any(name.endswith(".partial") for name in states_in(out))


def is_trained(out: Path) -> bool:
    return "stage-3-step-000000" in states_in(out)


POINTS = {
    "while targets are computed": is_target_begun,
    "in the first stage": lambda out: is_within(1, out),
    "while a state is written": is_writing_state,
    "in the last stage": lambda out: is_within(2, out),
    "when all is trained": is_trained,
}


def test_a_run_killed_at_many_points_has_the_weights_of_the_unbroken_one(
    recording: Recording, two_stages, unbroken: Path, tmp_path: Path
):
    out, killed = tmp_path / "run", []
    for name, is_there in POINTS.items():
        if killed_once(
            lambda: trained(recording, out, two_stages), lambda is_there=is_there: is_there(out)
        ):
            killed.append(name)
    assert len(killed) >= 3, killed  # the last ones may be over before they are seen
    if not out.exists():
        trained(recording, out, two_stages)
    assert_same_weights(out, unbroken)
    assert read_record(out).losses_by_epoch == read_record(unbroken).losses_by_epoch
    assert read_record(out).spec == read_record(unbroken).spec
    assert sorted(path.name for path in out.iterdir()) == ["run.json", "student.pt", "targets"]


def test_a_run_killed_after_every_few_steps_arrives_all_the_same(
    recording: Recording, two_stages, unbroken: Path, tmp_path: Path
):
    out, kills = tmp_path / "run", 0
    for lived_s in (0.3, 0.45, 0.6, 0.8, 1.0, 60.0):
        ends = time.monotonic() + lived_s
        kills += killed_once(
            lambda: trained(recording, out, two_stages), lambda ends=ends: time.monotonic() > ends
        )
        if out.exists():
            break
    assert kills
    assert_same_weights(out, unbroken)


def test_ctrl_c_saves_the_step_under_way_and_says_how_to_go_on(
    recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = quick_words((*BARE, "train.epochs=3", "train.min_steps_per_epoch=30"))
    words = ["distill", recording.folder, "--recipe", "tiny", *settings]
    out, states = tmp_path / "run", tmp_path / "run.unfinished" / "state"
    process = subprocess.Popen(
        edge_command([*words, "--out", out]), env=here(), stderr=subprocess.PIPE, text=True
    )
    while not list(states.glob("stage-1-step-000030")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    (state,) = states.iterdir()
    step = int(state.name.rpartition("-")[2])
    assert step > 30, "the interrupted epoch has a state of its own"
    assert f"{step} steps of stage 'line' are saved" in said
    assert "--resume" in said
    assert "Traceback" not in said

    assert main([*map(str, words), "--out", str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    other = [*map(str, words), "--set", "seed=9", "--out", str(out), "--resume"]
    assert main(other) == 2
    assert "another recording, recipe" in capsys.readouterr().err
    assert main([*map(str, words), "--out", str(out), "--resume"]) == 0
    assert main([*map(str, words), "--out", str(tmp_path / "unbroken")]) == 0
    assert_same_weights(out, tmp_path / "unbroken")


def test_a_disk_that_fills_up_loses_nothing_that_was_saved(
    recording: Recording,
    unbroken: Path,
    two_stages,
    small_disk: Path,  # noqa: F811
):
    out, ballast = small_disk / "run", []
    journal = StopsAt(2, lambda: ballast.append(fill_disk(small_disk)))
    with pytest.raises(MachineError, match=r"takes the run's state.*--resume"):
        trained(recording, out, two_stages, journal)
    assert states_in(out) == ["stage-1-step-000002"]
    for path in small_disk.glob("*ballast*"):
        path.unlink()
    trained(recording, out, two_stages)
    assert_same_weights(out, unbroken)


@pytest.fixture(scope="module")
def stopped(recording: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unfinished run with one state, after 3 steps."""
    out = tmp_path_factory.mktemp("stopped") / "run"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(recording, out, RECIPE, StopsAt(3, stop))
    return out.with_name("run.unfinished")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("optimizer.bin", "changed"),
        ("optimizer.bin", "gone"),
        ("pytorch_model.bin", "changed"),
        ("pytorch_model.bin", "cut"),
        (POSITION_FILE, "cut"),
        (POSITION_FILE, "gone"),
    ],
)
def test_a_corrupt_state_is_refused_by_name(
    recording: Recording, stopped: Path, tmp_path: Path, name: str, harm: str
):
    shutil.copytree(stopped, tmp_path / "run.unfinished")
    path = tmp_path / "run.unfinished" / "state" / "stage-1-step-000003" / name
    content = path.read_bytes()
    half = len(content) // 2
    if harm == "changed":
        path.write_bytes(content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :])
    elif harm == "cut":
        path.write_bytes(content[:half])
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"as it was written.*--force"):
        trained(recording, tmp_path / "run", RECIPE)


def test_a_state_of_other_processes_is_refused(recording: Recording, stopped: Path, tmp_path: Path):
    shutil.copytree(stopped, tmp_path / "run.unfinished")
    path = tmp_path / "run.unfinished" / "state" / "stage-1-step-000003" / POSITION_FILE
    position = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**position, "processes": "8 x MULTI_GPU"}))
    with pytest.raises(InputError, match=r"8 x MULTI_GPU.*as many processes"):
        trained(recording, tmp_path / "run", RECIPE)


def test_there_is_nothing_to_resume_before_a_first_run(tmp_path: Path):
    with pytest.raises(InputError, match="Leave out --resume"):
        make_room(RunFolders(tmp_path / "run"), RECIPE, resume=True, force=False)
