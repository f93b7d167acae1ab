import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from small_distillation import (
    Order,
    change_file,
    distilled,
    quick_recipe,
    small_recording,
)
from small_station import BAD, GOOD, spec_of, write_bundle, write_squares

from edge.cli.main import main
from edge.model_spec import ImageInput
from edge.recording.format import Recording
from edge.sample import Channel

KEYS = ["n", "auroc", "auroc_by_label", "auroc_image_only", "auroc_sensor_only", "aupro",
        "threshold", "escape_rate", "overkill_rate", "unknown_labels"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, Path]:
    folder = tmp_path_factory.mktemp("evaluate")
    recording = small_recording(folder / "rec")
    recipe = quick_recipe("train.epochs=6", "train.min_steps_per_epoch=6")
    distilled(recording, folder / "run", recipe)
    return recording, folder / "run"


@dataclass
class Said:
    """What a command answered."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def edge(capsys: pytest.CaptureFixture[str]):
    """Run the command in this process, which has torch loaded already."""

    def run(*words: object) -> Said:
        status = main([str(word) for word in words])
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return run


def test_the_json_has_exactly_the_keys_that_are_promised(edge, trained: tuple[Recording, Path]):
    recording, run = trained
    said = edge("evaluate", run, recording.folder, "--json")
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert list(found) == KEYS
    assert found["n"] == 18
    assert sorted(found["auroc_by_label"]) == ["hum", "scratch"]
    for name in ("escape_rate", "overkill_rate"):
        rate = found[name]
        assert list(rate) == ["value", "low", "high", "n"]
        assert rate["low"] <= rate["value"] <= rate["high"]
    assert found["escape_rate"]["n"] == 12
    assert found["overkill_rate"]["n"] == 6
    assert "cannot support a false-alarm budget" in said.stderr


def test_the_table_can_be_read_by_a_person(edge, trained: tuple[Recording, Path]):
    recording, run = trained
    said = edge("evaluate", run, recording.folder, "--split", "val")
    assert said.returncode == 0, said.stderr
    for words in ("AUROC", "scratch", "AUPRO", "threshold", "95 %", "n = 6"):
        assert words in said.stdout


def test_frames_of_another_size_than_the_bundles_are_said(edge, tmp_path: Path):
    recording = write_squares(tmp_path / "rec", [GOOD, BAD, GOOD])
    spec = msgspec.structs.replace(spec_of(), frame=ImageInput(24, 40))
    write_bundle(tmp_path / "bundle", spec)
    words = ("evaluate", tmp_path / "bundle", recording.folder)
    note = "note: 3 of 3 frames are not of 40x24: each was resized on the CPU first"
    assert note in edge(*words).stderr.splitlines()
    Image.new("RGB", (40, 24), (BAD, BAD, BAD)).save(recording.path_of(f"grey{BAD}.png"))
    assert note.replace("3 of", "2 of", 1) in edge(*words).stderr.splitlines()
    Image.new("RGB", (40, 24), (GOOD, GOOD, GOOD)).save(recording.path_of(f"grey{GOOD}.png"))
    said = edge(*words)
    assert (said.returncode, "resized" in said.stderr) == (0, False)


def test_a_split_that_is_not_there_is_refused(edge, trained: tuple[Recording, Path]):
    recording, run = trained
    said = edge("evaluate", run, recording.folder, "--split", "tset")
    assert said.returncode == 2
    assert "split 'tset'" in said.stderr
    assert "train, val, test" in said.stderr


def test_a_defect_that_is_new_to_the_model_counts_as_not_normal_and_is_said(
    edge, trained: tuple[Recording, Path], tmp_path: Path
):
    _, run = trained
    other = small_recording(tmp_path / "rec", Order(labels=("ok", "scratsh", "dent")))
    said = edge("evaluate", run, other.folder)
    assert said.returncode == 0, said.stderr
    assert "'scratsh' (6 samples) is no class of the model's: counted as not normal" in said.stderr
    assert "Did you mean 'scratch'?" in said.stderr
    assert "'dent' (6 samples)" in said.stderr
    assert "  dent (no class of the model's)" in said.stdout
    found = json.loads(edge("evaluate", run, other.folder, "--json").stdout)
    assert found["unknown_labels"] == {"dent": 6, "scratsh": 6}
    assert (found["escape_rate"]["n"], found["overkill_rate"]["n"]) == (12, 6)
    assert sorted(found["auroc_by_label"]) == ["dent", "scratsh"]


def test_normal_parts_may_be_called_otherwise_than_the_models_but_not_in_two_ways(
    edge, trained: tuple[Recording, Path], tmp_path: Path
):
    _, run = trained
    good = small_recording(tmp_path / "good", Order(labels=("good", "scratch")))
    found = json.loads(edge("evaluate", run, good.folder, "--json").stdout)
    assert (found["overkill_rate"]["n"], found["unknown_labels"]) == (6, {})
    both = small_recording(tmp_path / "both", Order(labels=("ok", "OK ", "scratch")))
    said = edge("evaluate", run, both.folder)
    assert said.returncode == 2
    assert "also 'OK ', whose parts would count as defects" in said.stderr


def test_a_normal_class_that_is_a_defect_to_the_model_is_refused(
    edge, trained: tuple[Recording, Path], tmp_path: Path
):
    _, run = trained
    other = small_recording(tmp_path / "rec", Order(labels=("scratch", "ok")))
    said = edge("evaluate", run, other.folder)
    assert said.returncode == 2
    assert "'scratch' as the normal class, which is a defect to the model" in said.stderr
    assert "--ok" in said.stderr


def test_other_channels_are_refused(edge, trained: tuple[Recording, Path], tmp_path: Path):
    _, run = trained
    channels = (Channel("drive_end", "g", 12000.0), Channel("fan_end", "g", 48000.0))
    other = small_recording(tmp_path / "rec", Order(channels=channels))
    said = edge("evaluate", run, other.folder)
    assert said.returncode == 2
    assert "fan_end:g:12000" in said.stderr
    assert "fan_end:g:48000" in said.stderr


@pytest.mark.parametrize("bad", ["nan", "inf", "shape", "image", "missing image"])
@pytest.mark.parametrize("command", ["evaluate", "distill"])
def test_a_broken_file_is_named(
    edge, bad: str, command: str, trained: tuple[Recording, Path], tmp_path: Path
):
    _, run = trained
    recording = small_recording(tmp_path / "rec", Order(size=(32, 32), per_label=3))
    row = recording.rows_in("test" if command == "evaluate" else "train")[0]
    window = np.load(recording.path_of(row.sensor or ""))
    if bad == "missing image":
        recording.path_of(row.image).unlink()
    elif bad == "image":
        path = recording.path_of(row.image)
        change_file(recording, row, "image", path.read_bytes()[:200])
    elif bad == "shape":
        np.save(recording.path_of(row.sensor or ""), window[:, :70])
    else:
        window[1, 5] = float(bad)
        np.save(recording.path_of(row.sensor or ""), window)
    if command == "evaluate":
        said = edge("evaluate", run, recording.folder)
    else:
        said = edge("distill", recording.folder, "--recipe", "tiny", "--out", tmp_path / "new")
    assert said.returncode == 2
    assert "Traceback" not in said.stderr
    paragraph = said.stderr.strip().splitlines()[-1]
    assert paragraph.startswith("edge: ")
    assert row.sample_id in paragraph
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_no_model_is_refused(
    edge, trained: tuple[Recording, Path], tmp_path: Path
):
    recording, run = trained
    said = edge("evaluate", tmp_path, recording.folder)
    assert said.returncode == 2
    record = json.loads((run / "run.json").read_text())
    (tmp_path / "run.json").write_bytes(msgspec.json.encode({**record, "schema": 99}))
    said = edge("evaluate", tmp_path, recording.folder)
    assert said.returncode == 2
    assert "schema 99" in said.stderr
