"""Targets on disk: whose they are, how they survive being stopped, and what is refused."""

import contextlib
import json
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_distillation import ROOT, Order, here, quick_recipe, silent, small_recording

from distill.dataset import training_parts
from distill.recipe import Recipe
from distill.students.student import Student
from distill.targets import compute
from distill.targets.compute import targets_in
from distill.targets.folder import only_writer
from edge.errors import InputError, MachineError
from edge.recording.format import Recording

ARRAYS = ("stem", "map", "scores", "soft_labels", "features_0", "seen", "readings")


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    return small_recording(tmp_path_factory.mktemp("targets") / "rec", Order(size=(32, 32)))


def taught(folder: Path, recording: Recording, recipe: Recipe, progress=silent, **stage):
    """Targets of a recipe's last stage."""
    parts = training_parts(recording, recipe)
    torch.manual_seed(0)
    student = Student(parts.spec, recipe)
    last = recipe.all_stages()[-1]
    last = type(last)(
        **{name: stage.get(name, getattr(last, name)) for name in last.__struct_fields__}
    )
    return targets_in(folder, parts, recipe, last, student, progress)


@pytest.fixture(scope="module")
def computed(recording, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("computed") / "targets"
    taught(folder, recording, quick_recipe("targets.copies=2"))
    return folder


@pytest.fixture
def whole(computed, tmp_path) -> Path:
    """A copy of whole targets, to be spoilt."""
    return shutil.copytree(computed, tmp_path / "targets")


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.npy").read_bytes() for name in ARRAYS}


def test_what_is_there_is_opened_read_only_and_not_computed_again(computed, recording):
    shown = []

    def progress(title):
        shown.append(title)
        return silent(title)

    targets = taught(computed, recording, quick_recipe("targets.copies=2"), progress)
    assert {title.partition(",")[0] for title in shown} == {"reading the targets"}
    assert targets.rounds == 3
    assert targets.stem.shape == (3, 18, 4, 272)
    with pytest.raises(ValueError, match="read-only"):
        targets.map[0, 0, 0] = 1.0


def test_any_tool_that_reads_npy_reads_them(computed):
    for name in ARRAYS:
        assert np.load(computed / f"{name}.npy").shape[0] > 0


def test_targets_cross_to_a_worker_as_a_path(computed, recording):
    targets = taught(computed, recording, quick_recipe("targets.copies=2"))
    message = pickle.dumps(targets)
    assert len(message) < 2000
    assert (pickle.loads(message).stem[1, 3] == targets.stem[1, 3]).all()


OTHERS = {
    "teacher's memory": (("teacher.memory_patches=41",), {}, "another recipe"),
    "seed": (("seed=4",), {}, "another recipe"),
    "share of labels": (("targets.label_share=0.5",), {}, "another recipe"),
    "size": (("image.pixel_budget=2048", "targets.copies=1"), {}, "another recipe"),
    "teachers": ((), {"backbones": ()}, "another teacher"),
    "stage": ((), {"name": "general"}, "another stage"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_targets_of_another_recipe_teacher_or_stage_are_refused(case, computed, recording):
    overrides, stage, found = OTHERS[case]
    before = bytes_in(computed)
    recipe = quick_recipe("targets.copies=2", "loss.features=0.5", *overrides)
    with pytest.raises(InputError, match=f"targets of this recording.*{found}"):
        taught(computed, recording, recipe, **stage)
    assert bytes_in(computed) == before


def test_targets_of_another_recording_are_refused(computed, tmp_path):
    elsewhere = small_recording(tmp_path / "rec", Order(size=(32, 32)), seed=5)
    with pytest.raises(InputError, match="those of another recording"):
        taught(computed, elsewhere, quick_recipe("targets.copies=2"))


def test_targets_for_other_losses_are_refused_but_other_weights_share_them(computed, recording):
    recipe = quick_recipe("targets.copies=2", "loss.features=0.1", "loss.map=3.0")
    taught(computed, recording, recipe)
    with pytest.raises(InputError, match="another stage"):
        taught(computed, recording, quick_recipe("targets.copies=2", "loss.summary=0.1"))


def test_targets_are_not_strewn_into_a_folder_of_something_else(recording):
    with pytest.raises(InputError, match="something else there"):
        taught(recording.folder, recording, quick_recipe())
    assert not (recording.folder / "index.json").exists()


def test_an_index_of_an_older_form_is_refused(whole, recording):
    (whole / "index.json").write_text('{"digest":"0","rounds":3,"rounds_done":3,"complete":true}')
    with pytest.raises(InputError, match="targets of this recording"):
        taught(whole, recording, quick_recipe("targets.copies=2"))


def cut_short(path: Path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def of_other_shape(path: Path):
    np.save(path, np.zeros((2, 2), np.float16))


def swap_header(path: Path):
    with path.open("r+b") as file:
        file.write(b"\x93NUMPX")


SPOILT = {
    "cut short": (cut_short, "bytes instead of"),
    "gone": (Path.unlink, "found"),
    "empty": (lambda path: path.write_bytes(b""), "another header"),
    "another array": (of_other_shape, "another header"),
    "damaged header": (swap_header, "another header"),
}


@pytest.mark.parametrize("case", SPOILT)
@pytest.mark.parametrize(("name", "complete"), [("stem", True), ("scores", False)])
def test_a_spoilt_array_is_refused_by_name_and_never_read(case, name, complete, whole, recording):
    spoil, found = SPOILT[case]
    spoil(whole / f"{name}.npy")
    if not complete:  # a computation that was stopped after its first round
        index = json.loads((whole / "index.json").read_bytes())
        index.update(complete=False, rounds_done=1)
        (whole / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"{name}.npy.*a whole array.*{found}.*Delete the folder"):
        taught(whole, recording, quick_recipe("targets.copies=2"))


def test_a_computation_killed_in_the_middle_of_a_round_goes_on_there(computed, recording, tmp_path):
    killed = tmp_path / "killed"
    dies = subprocess.run(
        [sys.executable, "-c", _DIES_IN_ROUND_TWO, str(recording.folder), str(killed)],
        env={**here(), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert dies.returncode == -signal.SIGKILL, dies.stderr
    index = json.loads((killed / "index.json").read_bytes())
    assert (index["rounds_done"], index["parts_done"], index["complete"]) == (1, 16, False)
    walked = []

    def tells(title):
        def walk(items):
            walked.append((title, list(items)))
            return items

        return walk

    taught(killed, recording, quick_recipe("targets.copies=2"), tells)
    rounds = [(title, items) for title, items in walked if "round" in title]
    assert rounds == [
        ("targets of 'line', round 2 of 3", [16]),
        ("targets of 'line', round 3 of 3", [0, 16]),
    ]
    assert bytes_in(killed) == bytes_in(computed)


_DIES_IN_ROUND_TWO = """
import os, signal, sys
from pathlib import Path
from test_distill_targets import taught
from small_distillation import quick_recipe
from distill.targets import compute
from edge.recording.format import Recording

compute._SAVE_EVERY_S = 0.0

def progress(title):
    def walk(items):
        for item in items:
            if "round 2" in title and item == 16:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item
    return walk

taught(Path(sys.argv[2]), Recording.open(Path(sys.argv[1])), quick_recipe("targets.copies=2"),
       progress)
"""


def test_ctrl_c_loses_nothing_that_was_computed(recording, tmp_path):
    def stops(title):
        def walk(items):
            for item in items:
                if "round 1" in title and item == 16:
                    raise KeyboardInterrupt
                yield item

        return walk

    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "t", recording, quick_recipe(), stops)
    assert json.loads((tmp_path / "t" / "index.json").read_bytes())["parts_done"] == 16


def test_the_disk_has_set_all_of_it_aside_before_a_teacher_is_asked(recording, tmp_path):
    def looks(title):
        assert "looks at" in title
        for path in (tmp_path / "t").glob("*.npy"):
            taken = path.stat()
            assert taken.st_blocks * 512 >= taken.st_size, path.name
        assert len(list((tmp_path / "t").glob("*.npy"))) == len(ARRAYS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "t", recording, quick_recipe(), looks)


def test_a_disk_without_the_room_is_refused_with_both_figures(recording, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    recipe = quick_recipe(f"targets.copies={free // 10_000}")
    with pytest.raises(MachineError) as caught:
        taught(tmp_path / "t", recording, recipe, asked_nothing)
    needed = int(caught.value.expected.split()[2].replace(",", ""))
    assert needed > free
    assert caught.value.found.endswith("bytes free")
    assert list((tmp_path / "t").glob("*.npy")) == []


def test_a_disk_that_fills_while_room_is_made_keeps_nothing_half(recording, tmp_path):
    with largest_file(20_000), pytest.raises(MachineError, match=r"room for [\d,]+ bytes"):
        taught(tmp_path / "t", recording, quick_recipe(), asked_nothing)
    names = sorted(path.name for path in (tmp_path / "t").iterdir())
    assert names == ["computing.lock", "index.json"]
    taught(tmp_path / "t", recording, quick_recipe())  # with room again, it goes on from there


def asked_nothing(title):
    raise AssertionError(f"asked before there was room: {title}")


@contextlib.contextmanager
def largest_file(size_bytes: int):
    """Let the system refuse larger files, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_two_processes_do_not_compute_into_one_folder(recording, tmp_path):
    (tmp_path / "t").mkdir()
    with only_writer(tmp_path / "t"), pytest.raises(InputError, match="another process"):
        taught(tmp_path / "t", recording, quick_recipe())
    taught(tmp_path / "t", recording, quick_recipe())


def test_a_stem_of_pixels_takes_half_the_disk_and_loses_nothing(recording, tmp_path):
    recipe = quick_recipe('student.stem="patch"')
    parts = training_parts(recording, recipe)
    targets = taught(tmp_path / "t", recording, recipe)
    student = Student(parts.spec, recipe)
    images = torch.from_numpy(np.stack([parts.image(index) for index in range(len(parts))]))
    assert targets.layouts["stem"].kind == "|u1"
    assert torch.equal(torch.from_numpy(targets.stem[0]), student.stem_features(images))


def test_how_far_it_is_is_saved_every_few_seconds():
    assert 0.0 < compute._SAVE_EVERY_S <= 60.0


def test_changed_bytes_in_a_finished_array_are_noticed_before_anything_learns_from_them(
    whole, recording
):
    with (whole / "stem.npy").open("r+b") as file:
        file.seek(-8, 2)
        file.write(bytes([0, 1, 2, 3]))

    with pytest.raises(InputError, match=r"stem\.npy.*other bytes than were written"):
        taught(whole, recording, quick_recipe("targets.copies=2"))
