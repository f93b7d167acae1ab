"""`edge export` on a real run: a whole bundle, or none and one paragraph that says why."""

import shutil

import msgspec
import numpy as np
import pytest
import torch
from export_stand_in import CLASSES, small_recording, write_small_recording
from PIL import Image
from torch import nn

from distill.checkpoint import (
    RECORD_FILE,
    Int8Input,
    Int8Ranges,
    Int8Record,
    RunRecord,
    ScoreMovement,
    StudentScorer,
    read_record,
    student_from_run,
    write_run,
)
from distill.dataset import spec_for
from distill.evaluation.reference import reference_of_training
from distill.recipe import load_recipe
from distill.students.student import Student
from edge.artefact import digest_of_file
from edge.bundle import Bundle, problems_of
from edge.cli.export_inputs import differences_from_training
from edge.cli.main import main
from edge.errors import MachineError
from edge.prepare import model_inputs
from edge.recording.format import write_recording
from edge.sample import Channel
from edge.verdict import DecisionRule, Threshold
from export import compile_check, onnx_graph, parity
from export.calibration import calibration_set

SMALL = ("student.stem=patch", "student.width=32", "student.heads=2", "sensor.frame_samples=64")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run as `edge distill` leaves it, its student trained on labels alone for seconds."""
    recording, recipe = small_recording(), load_recipe("tiny", SMALL)
    threshold = Threshold(0.5, 0.05, 16, supported=False)
    spec = msgspec.structs.replace(
        spec_for(recording, recipe), rule=DecisionRule(threshold, threshold)
    )
    torch.manual_seed(0)
    student = Student(spec, recipe)
    rows = recording.rows_in("train")
    batch = [model_inputs(recording.read_sample(row), spec) for row in rows]
    inputs = [torch.cat([torch.tensor(one[t.name]) for one in batch]) for t in spec.inputs()]
    labels = torch.tensor([CLASSES.index(row.label) for row in rows])
    optimiser = torch.optim.AdamW(student.parameters(), lr=5e-3)
    for _ in range(40):
        optimiser.zero_grad()
        classes, score = student(*inputs)[:2]
        loss = nn.functional.nll_loss((classes + 1e-6).log(), labels)
        (loss + nn.functional.binary_cross_entropy(score, (labels > 0).float())).backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("run")
    record = RunRecord(
        spec=spec,
        recipe=recipe,
        recipe_digest=recipe.digest(),
        recording="small",
        recording_digest=recording.digest(),
        weights_digest="",
        parts_by_label={},
        losses_by_epoch=(),
        versions={},
        remarks=(),
        normals=reference_of_training(
            StudentScorer(student, spec), recording, rows, lambda _title: lambda items: items
        ),
    )
    write_run(folder, student, record)
    return folder


FIXED = ("--calibration-method", "max", "--smooth", "off")  # nothing chosen by measurement


def export(run, recording, out, *more, fixed=FIXED):
    words = [run, "--calibration", recording, "--out", out, "--samples", 32]
    return main(["export", *map(str, words), *fixed, *map(str, more)])


def darken(recording):
    """Take most of the light from every picture, digests and all: a lamp has failed."""
    rows = []
    for row in recording.rows:
        path = recording.path_of(row.image)
        Image.fromarray(np.asarray(Image.open(path)) // 8).save(path)
        rows.append(msgspec.structs.replace(row, image_digest=digest_of_file(path)))
    write_recording(recording.folder, recording.header, rows)


def refused(capsys):
    """The one paragraph for a person, which is the last line on standard error."""
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("edge: ")
    return line


@pytest.fixture
def folders(tmp_path):
    """Assert, when the test is over, that nothing half written was left beside the output."""
    yield tmp_path / "bundle"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_run_becomes_a_whole_bundle_that_verifies(run_folder, folders, capsys):
    assert export(run_folder, small_recording().folder, folders, fixed=()) == 0
    told = capsys.readouterr()
    assert "Calibrating on 32 samples" in told.err
    assert f"edge verify {folders}" in told.out.replace("\n", "")
    assert "Reference: 16 normal samples of 16 parts" in told.out.replace("\n", " ")
    manifest = Bundle.open(folders).manifest
    assert manifest.reference is not None
    assert [one.form for one in manifest.parity] == ["onnx-fp32", "onnx-int8"]
    assert manifest.parity[0].max_score_error < 1e-4
    assert {check.file for check in manifest.compile_checks} <= set(manifest.files)
    assert manifest.provenance.training_digest == small_recording().digest()
    assert manifest.provenance.calibration_differences == {}  # calibrated on the training's own
    assert manifest.form == "int8"
    made = manifest.quantisation
    assert set(made.method_movements) == {"max", "percentile", "entropy", "mse"}
    assert made.method == min(made.method_movements, key=made.method_movements.get)
    assert "0" in made.smoothing_movements
    assert made.returned == ()
    assert len(manifest.parity[1].worst) == 10
    low, high = manifest.parity[1].auroc_interval
    assert low <= manifest.parity[1].auroc_difference <= high
    assert main(["verify", str(folders)]) == 0
    assert Image.open(f"{folders}.worst.png").height > 10 * 200  # ten rows of pictures


def test_batch_is_written_into_the_spec_and_verifies(run_folder, folders, capsys):
    recording = small_recording().folder
    assert export(run_folder, recording, folders, "--batch", 2) == 0
    assert Bundle.open(folders).manifest.spec.batch == 2
    assert main(["verify", str(folders)]) == 0
    assert export(run_folder, recording, folders, "--force", "--batch", 0) == 2
    assert "1 to 64 samples" in refused(capsys)


def test_existing_output_is_refused_early_and_replaced_by_force(
    run_folder, folders, capsys, monkeypatch
):
    folders.mkdir()
    (folders / "old.txt").write_text("somebody's")
    assert export(run_folder, small_recording().folder, folders) == 2
    assert "found something else. Choose another path." in refused(capsys)
    # Not even --force deletes what no export wrote, such as the recording it calibrates on.
    assert export(run_folder, small_recording().folder, folders, "--force") == 2
    assert "deletes nothing" in refused(capsys)
    assert (folders / "old.txt").exists()
    (folders / "manifest.json").write_text("an earlier bundle")
    assert export(run_folder, small_recording().folder, folders) == 2
    assert "--force" in refused(capsys)
    # On this second way the builder is absent, which is said and recorded, and no reason to stop.
    monkeypatch.setattr(compile_check, "_BINDINGS", "no_such_bindings")
    assert export(run_folder, small_recording().folder, folders, "--force") == 0
    assert problems_of(Bundle.open(folders)) == []
    assert "NOT CHECKED by NVIDIA's builder" in capsys.readouterr().err
    checks = Bundle.open(folders).manifest.compile_checks
    assert {check.status for check in checks} == {"not run"}


def test_parity_over_budget_makes_no_bundle(run_folder, folders, capsys, monkeypatch):
    strict = parity.Budget(1e-9, 0.0, 0.0)  # less than any rounding
    monkeypatch.setitem(parity.BUDGETS, parity.ONNX_INT8, strict)
    assert export(run_folder, small_recording().folder, folders) == 1
    told = capsys.readouterr().err
    assert "back to float: " in told  # it was tried with fewer and fewer layers
    assert "Worst: val-0" in told.splitlines()[-1]
    assert "layers that move scores most: " in told.splitlines()[-1]
    assert not folders.exists()
    assert f"judges worst are drawn in {folders}.worst.png" in told.replace("\n", "")
    assert Image.open(f"{folders}.worst.png").height > 10 * 200  # a refusal is looked into


def test_fp32_over_budget_is_drawn_in_place_of_an_earlier_drawing(
    run_folder, folders, capsys, monkeypatch
):
    drawing = folders.with_name("bundle.worst.png")
    Image.new("RGB", (3, 3)).save(drawing)
    assert export(run_folder, small_recording().folder, folders, "--samples", 1) == 2
    assert Image.open(drawing).size == (3, 3)  # nothing was made, so nothing is replaced
    monkeypatch.setitem(parity.BUDGETS, parity.ONNX_FP32, parity.Budget(0.0, 0.0, 0.0))
    assert export(run_folder, small_recording().folder, folders) == 1
    told = capsys.readouterr().err
    assert "The exporter changed the student" in told.splitlines()[-1]
    assert f"fp32 judges worst are drawn in {drawing}" in told.replace("\n", "")
    assert Image.open(drawing).height > 10 * 200
    assert not folders.exists()


def test_earlier_drawing_does_not_outlive_an_export_that_stops_midway(
    run_folder, folders, capsys, monkeypatch
):
    def full(*_arguments):
        raise MachineError(where="disk", expected="space", found="none", do="Make some.")

    drawing = folders.with_name("bundle.worst.png")
    Image.new("RGB", (3, 3)).save(drawing)
    monkeypatch.setattr(onnx_graph, "fp32_onnx_from_student", full)
    assert export(run_folder, small_recording().folder, folders) == 3
    assert refused(capsys).endswith("Make some.")
    assert not drawing.exists()


def test_int8_where_an_int8_self_was_not_trained_in_it_is_refused_before_anything_is_made(
    run_folder, folders, tmp_path, capsys
):
    run = shutil.copytree(run_folder, tmp_path / "run")
    record = read_record(run)
    moved = ScoreMovement(samples=1, mean=0.1, largest=0.1)
    inputs = (Int8Input(("joint_blocks.0.up",), 1.0),)
    told = Int8Record(
        weights_digest="0" * 64,
        recording_digest=record.recording_digest,
        recipe=record.recipe,
        calibrated=Int8Ranges("max", 32, inputs),
        inputs=inputs,
        before=moved,
        after=moved,
    )
    write_run(run, student_from_run(run), msgspec.structs.replace(record, int8=told))
    for arguments in (("--int8-attention",), ("--int8-attention", "--precision", "auto")):
        asked = ("--calibration-method", "auto", *arguments)
        assert export(run, small_recording().folder, folders, *asked, fixed=()) == 2
        told = capsys.readouterr().err
        assert f"edge: {run}: expected to write in int8 what the run was" in told.splitlines()[-1]
        assert "--int8-attention, or name a --calibration-method" in told.splitlines()[-1]
        assert "Writing the FP32 ONNX" not in told


def test_file_of_somebody_where_the_worst_samples_would_be_drawn_is_kept(
    run_folder, folders, capsys
):
    folders.with_name("bundle.worst.png").write_text("notes")
    assert export(run_folder, small_recording().folder, folders) == 2
    assert "deletes nothing" in refused(capsys)
    assert folders.with_name("bundle.worst.png").read_text() == "notes"


def test_folder_that_is_no_run_is_bad_input(folders, tmp_path, capsys):
    assert export(tmp_path, small_recording().folder, folders) == 2
    assert "expected a run" in refused(capsys)


def test_run_of_another_schema_is_bad_input(run_folder, folders, tmp_path, capsys):
    other = shutil.copytree(run_folder, tmp_path / "run")
    record = (other / RECORD_FILE).read_text()
    (other / RECORD_FILE).write_text(record.replace('"schema": 2', '"schema": 9'))
    assert export(other, small_recording().folder, folders) == 2
    assert "found schema 9" in refused(capsys)


def test_run_without_a_threshold_is_bad_input(run_folder, folders, tmp_path, capsys):
    other = shutil.copytree(run_folder, tmp_path / "run")
    record = msgspec.json.decode((other / RECORD_FILE).read_bytes())
    record["spec"]["rule"] = None
    (other / RECORD_FILE).write_bytes(msgspec.json.encode(record))
    assert export(other, small_recording().folder, folders) == 2
    assert "still in training" in refused(capsys)


def test_recording_of_other_channels_is_bad_input(run_folder, folders, tmp_path, capsys):
    recording = write_small_recording(tmp_path / "rec", {"train": 33})
    header = msgspec.structs.replace(recording.header, channels=(Channel("force", "N", 50.0),))
    (recording.folder / "recording.json").write_bytes(msgspec.json.encode(header))
    assert export(run_folder, recording.folder, folders) == 2
    assert "found force:N:50" in refused(capsys)
    assert not folders.exists()


def test_empty_and_tiny_calibration_recordings_are_bad_input(run_folder, folders, tmp_path, capsys):
    for splits, found in (({}, "no samples"), ({"train": 3}, "has 3")):
        recording = write_small_recording(tmp_path / found, splits)
        assert export(run_folder, recording.folder, folders) == 2
        assert found in refused(capsys)


def test_few_parts_calibrate_no_int8_but_ship_as_fp16(run_folder, folders, tmp_path, capsys):
    few = write_small_recording(tmp_path / "few", {"train": 6, "val": 24}).folder
    assert export(run_folder, few, folders) == 2
    assert "has 6" in (told := refused(capsys))
    assert "--precision fp16 ships the run without any ranges" in told
    assert export(run_folder, few, folders, "--precision", "fp16") == 0
    manifest = Bundle.open(folders).manifest
    assert (manifest.form, manifest.provenance.calibration_samples) == ("fp16", 6)


def test_sample_with_readings_that_are_no_numbers_stops_the_export(
    run_folder, folders, tmp_path, capsys
):
    recording = shutil.copytree(small_recording().folder, tmp_path / "rec")
    for path in (recording / "files").glob("train-01*.npy"):
        path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")  # a float32 NaN
    assert export(run_folder, recording, folders) == 2
    assert "finite readings" in refused(capsys)
    assert not folders.exists()


def test_fp8_is_refused_with_the_reason(run_folder, folders, capsys):
    assert export(run_folder, small_recording().folder, folders, "--precision", "fp8") == 2
    assert "begins with SM 8.9, while every Orin has SM 8.7" in refused(capsys)


def test_auto_shows_the_forms_side_by_side_and_ships_the_fastest(run_folder, folders, capsys):
    arguments = ("--precision", "auto")
    assert export(run_folder, small_recording().folder, folders, *arguments) == 0
    told = capsys.readouterr()
    manifest = Bundle.open(folders).manifest
    assert manifest.form == "int8"
    assert "int8 (ships)" in told.out.replace("\n", "")
    tried = [one.form for one in manifest.parity]
    assert tried[:3] == ["onnx-fp32", "onnx-int8", "onnx-fp16"]
    assert "model.fp16.onnx" not in manifest.files
    assert "model.int4.onnx" not in manifest.files
    assert problems_of(Bundle.open(folders)) == []


def without_normals(run, folder):
    """A run as it was before runs kept figures of their training parts."""
    shutil.copytree(run, folder)
    record = msgspec.json.decode((folder / RECORD_FILE).read_bytes())
    del record["normals"]
    (folder / RECORD_FILE).write_bytes(msgspec.json.encode(record))
    return folder


def test_another_recording_is_compared_with_what_the_run_keeps_of_its_training_samples(
    run_folder, folders, tmp_path, capsys
):
    other = write_small_recording(tmp_path / "other", {"train": 40, "val": 24}, seed=5)
    assert export(run_folder, other.folder, folders) == 0
    assert "deviations from 32 normal training samples: " in capsys.readouterr().err
    kept = Bundle.open(folders).manifest.provenance.calibration_differences
    assert 0 < max(kept.values()) < 4


def test_older_run_is_compared_where_its_recording_is_given(run_folder, tmp_path, capsys):
    older = without_normals(run_folder, tmp_path / "older")
    record, student = read_record(older), student_from_run(older)
    other = write_small_recording(tmp_path / "other", {"train": 40}, seed=5)
    calibration = calibration_set(other, record.spec, samples=32)
    compared = differences_from_training(student, record, calibration, None, whole=other)
    assert compared is None  # which the manifest will say
    assert "keeps no figures of it; give it as --training" in capsys.readouterr().err
    training = small_recording().folder
    given = differences_from_training(student, record, calibration, training, whole=other)
    assert "deviations from 32 normal training samples: " in capsys.readouterr().err
    record = read_record(run_folder)
    assert given == differences_from_training(student, record, calibration, None, whole=other)


def test_unlike_calibration_samples_are_refused_with_their_distance(
    run_folder, folders, tmp_path, capsys
):
    dark = write_small_recording(tmp_path / "dark", {"train": 40, "val": 24})
    darken(dark)
    assert export(run_folder, dark.folder, folders) == 2
    assert "brightness 1" in refused(capsys)  # more than ten deviations
    assert not folders.exists()


def test_recording_given_as_training_must_be_that_of_the_run(run_folder, folders, tmp_path, capsys):
    other = write_small_recording(tmp_path / "other", {"train": 40, "val": 24}, seed=5)
    assert export(run_folder, other.folder, folders, "--training", other.folder) == 2
    assert "--training: expected the recording that the run was trained on" in refused(capsys)
