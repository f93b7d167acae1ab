"""`edge export` of whole frames: the graph resizes them, proven against the host's resize."""

import shutil

import msgspec
import onnx
import pytest
import torch
from export_stand_in import CLASSES, write_small_recording
from PIL import Image
from torch import nn

from device_agents.engine.load import engine_from_bundle
from distill.checkpoint import (
    RunRecord,
    read_record,
    scorer_from_run,
    student_from_run,
    write_run,
)
from distill.dataset import spec_for
from distill.recipe import load_recipe
from distill.students.student import Student
from edge.artefact import digest_of_file
from edge.bundle import FP32_FILE, INT8_FILE, Bundle, problems_of
from edge.cli.export_inputs import differences_from_training
from edge.cli.export_table import _row_titles
from edge.cli.main import main
from edge.model_spec import ImageInput
from edge.prepare import model_inputs
from edge.recording.format import Recording, write_recording
from edge.verdict import DecisionRule, Threshold
from export.calibration import calibration_set

SMALL = ("student.stem=patch", "student.width=32", "student.heads=2", "sensor.frame_samples=64")
WIDE = (150, 90)  # width and height of the line's frames; the student looks at other sizes


def resized(recording, chosen, size):
    """Write the chosen pictures in another size, digests and all."""
    rows = []
    for place, row in enumerate(recording.rows):
        path = recording.path_of(row.image)
        if chosen(place):
            Image.open(path).resize(size).save(path)
        rows.append(msgspec.structs.replace(row, image_digest=digest_of_file(path)))
    write_recording(recording.folder, recording.header, rows)
    return Recording.open(recording.folder)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line") / "rec"
    return resized(write_small_recording(folder), lambda _place: True, WIDE)


@pytest.fixture(scope="module")
def run_folder(line, tmp_path_factory):
    """A run as `edge distill` leaves it, its student trained on labels alone for seconds."""
    recipe, cut = load_recipe("tiny", SMALL), Threshold(0.5, 0.05, 16, supported=False)
    spec = msgspec.structs.replace(spec_for(line, recipe), rule=DecisionRule(cut, cut))
    torch.manual_seed(0)
    student = Student(spec, recipe)
    rows = line.rows_in("train")
    batch = [model_inputs(line.read_sample(row), spec) for row in rows]
    inputs = [torch.cat([torch.tensor(one[t.name]) for one in batch]) for t in spec.inputs()]
    bad = torch.tensor([float(CLASSES.index(row.label) > 0) for row in rows])
    optimiser = torch.optim.AdamW(student.parameters(), lr=5e-3)
    for _ in range(15):
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy(student(*inputs)[1], bad).backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("run")
    told = {"recipe_digest": recipe.digest(), "recording_digest": line.digest()}
    nothing = {"parts_by_label": {}, "losses_by_epoch": (), "versions": {}, "remarks": ()}
    record = RunRecord(
        spec=spec, recipe=recipe, recording="line", weights_digest="", **told, **nothing
    )
    write_run(folder, student, record)
    return folder


def export(run, recording, out, *more):
    fixed = ("--samples", 32, "--calibration-method", "max", "--smooth", "off")
    words = ["export", run, "--calibration", recording, "--out", out, *fixed, *more]
    return main([str(word) for word in words])


def refused(capsys):
    """The one paragraph for a person, which is the last line on standard error."""
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("edge: ")
    return line


def test_bundle_takes_the_recordings_whole_frames_and_says_what_the_checkpoint_says(
    run_folder, line, tmp_path, capsys
):
    out = tmp_path / "bundle"
    assert export(run_folder, line.folder, out) == 0
    told = capsys.readouterr().err
    bundle = Bundle.open(out)
    spec = bundle.manifest.spec
    assert spec.frame == ImageInput(height=90, width=150)
    looked_at = f"{spec.image.width}x{spec.image.height}"
    assert f"frames of 150x90 go in whole, to {looked_at} in the graph" in told
    for file in (FP32_FILE, INT8_FILE):
        nodes = [node.name for node in onnx.load(out / file).graph.node]
        assert nodes[0] == "resize/Cast"
        assert nodes.count("resize/MatMul") + nodes.count("resize/MatMul_2") == 2
    # Parity has held the graph's resize against the host's, for the checkpoint has no other.
    assert bundle.manifest.parity[0].max_score_error < 1e-4
    assert problems_of(bundle) == []
    assert main(["verify", str(out)]) == 0
    sample = line.read_sample(line.rows_in("test")[0])
    with engine_from_bundle(bundle, form="fp32") as engine, scorer_from_run(run_folder) as trained:
        inputs = model_inputs(sample, engine.spec)
        assert inputs["image"].shape == (1, 90, 150, 3)
        theirs = trained.score(model_inputs(sample, trained.spec))
        assert abs(engine.score(inputs).anomaly_score - theirs.anomaly_score) < 1e-4


def test_mixed_recording_is_refused_and_proves_one_size_where_one_is_asked_for(
    run_folder, line, tmp_path, capsys
):
    mixed = Recording.open(shutil.copytree(line.folder, tmp_path / "mixed"))
    mixed = resized(mixed, lambda place: place % 5 == 4, (100, 60))
    out = tmp_path / "bundle"
    assert export(run_folder, mixed.folder, out) == 2
    assert "found 150x90 (77 train, 39 val, 19 test), 100x60 (19 train, 9 val, 5 test)" in (
        told := refused(capsys)
    )
    assert "--frame 150x90" in told
    assert "--frame model" in told
    assert not out.exists()
    assert export(run_folder, mixed.folder, out, "--frame", "100x60") == 2
    few = "(split 'train' has 19)"
    assert few in (told := refused(capsys))
    assert told.endswith("135 samples of other sizes were left out by --frame 100x60.")
    training = ("--training", line.folder)
    arguments = ("--frame", "150x90", "--precision", "fp16", *training)
    assert export(run_folder, mixed.folder, out, *arguments) == 0
    assert "33 samples of other sizes are left out" in capsys.readouterr().err
    manifest = Bundle.open(out).manifest
    assert manifest.spec.frame == ImageInput(90, 150)
    assert manifest.parity[0].samples == len([p for p in range(96, 144) if p % 5 != 4])


@pytest.mark.parametrize(
    "case",
    [
        ("big", "expected WIDTHxHEIGHT in pixels, such as 1280x960, or model, found 'big'"),
        (
            "1280x960",
            "expected frames of 1280x960, as --frame says, found 150x90 (96 train, 48 val",
        ),
    ],
)
def test_wrong_frame_is_bad_input(run_folder, line, tmp_path, capsys, case):
    asked, found = case
    assert export(run_folder, line.folder, tmp_path / "bundle", "--frame", asked) == 2
    assert found in refused(capsys)
    assert not (tmp_path / "bundle").exists()


def test_line_is_known_again_by_a_camera_of_twice_the_size(run_folder, line, tmp_path, capsys):
    twice = Recording.open(shutil.copytree(line.folder, tmp_path / "twice"))
    twice = resized(twice, lambda _place: True, (300, 180))
    record, student = read_record(run_folder), student_from_run(run_folder)
    calibration = calibration_set(twice, record.spec, samples=32)
    compared = differences_from_training(student, record, calibration, line.folder, whole=twice)
    assert "(focus not compared: frames of another size)" in capsys.readouterr().err
    assert "focus" not in compared
    assert max(compared.values()) < 4


def test_own_recording_is_known_though_a_frame_size_left_some_of_it_out(run_folder, line, capsys):
    record, student = read_record(run_folder), student_from_run(run_folder)
    some = Recording(line.folder, line.header, line.rows[::2])
    calibration = calibration_set(some, record.spec, samples=32)
    own = msgspec.structs.replace(record, recording_digest=line.digest())
    assert differences_from_training(student, own, calibration, None, whole=line) == {}
    assert "of the recording that the run was trained on" in capsys.readouterr().err


def test_time_without_the_hosts_resize_says_so(line):
    recipe = load_recipe("tiny", SMALL)
    spec = spec_for(line, recipe)
    whole = msgspec.structs.replace(spec, frame=ImageInput(90, 150))
    assert "One sample here, resized before" in _row_titles(spec)
    assert "One sample here" in _row_titles(whole)


def test_hosts_resize_is_left_where_that_is_asked_for(run_folder, line, tmp_path, capsys):
    arguments = ("--frame", "model", "--samples", 1)  # too few: it stops before it makes anything
    assert export(run_folder, line.folder, tmp_path / "bundle", *arguments) == 2
    assert "frames of any size are brought to" in capsys.readouterr().err
