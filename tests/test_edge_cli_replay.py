"""`edge replay`: the device's path on a desk."""

import json
import shutil
import subprocess

import msgspec
import pytest
from PIL import Image
from small_station import (
    BAD,
    CHANNELS,
    GOOD,
    edge,
    spec_of,
    write_bundle,
    write_squares,
)

from edge.cli.replay import percentile
from edge.messages import Inspection, decode
from edge.model_spec import ImageInput
from edge.sample import Channel


@pytest.fixture
def desk(tmp_path):
    write_squares(tmp_path / "rec", [GOOD, BAD, GOOD, BAD], without_sensor=[2])
    write_bundle(tmp_path / "bundle", spec_of(image_only=True))
    return tmp_path


def replay(desk, *words) -> tuple[int, str, str]:
    process = edge(
        *("replay", desk / "rec", "--bundle", desk / "bundle", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, said = process.communicate(timeout=30)
    assert b"Traceback" not in said
    return process.returncode, out.decode(), said.decode()


def test_lines_for_people_and_counts_at_the_end(desk):
    status, out, said = replay(desk)
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["PASS", "p0000"],
        ["FAIL", "p0001"],
        ["PASS", "p0002"],
        ["FAIL", "p0003"],
    ]
    assert "judged by image alone" in out.splitlines()[2]
    assert "2 pass, 2 fail, 0 invalid; total p50" in said
    assert "p99" in said


def test_jsonl_lines_are_messages(desk):
    status, out, _ = replay(desk, "--jsonl", "--split", "test")
    assert status == 0
    found = [decode(line.encode(), Inspection) for line in out.splitlines()]
    assert [i.decision for i in found] == ["pass", "fail", "pass", "fail"]
    assert len({i.inspection_id for i in found}) == 4
    assert json.loads(out.splitlines()[0])["captured_at"] is None, "the recording has no times"


def test_limit_form_and_pace(desk):
    status, out, said = replay(desk, "--limit", 2, "--form", "fp32", "--realtime", "--threads", 1)
    assert status == 0
    assert len(out.splitlines()) == 2
    assert "50 parts/s" in said
    assert "fp32" in said


def test_frames_of_another_size_than_the_bundles_are_told_of_once(desk):
    shutil.rmtree(desk / "bundle")
    spec = msgspec.structs.replace(spec_of(image_only=True), frame=ImageInput(24, 40))
    write_bundle(desk / "bundle", spec)
    picture = desk / "rec" / "files" / f"grey{BAD}.png"
    Image.new("RGB", (40, 24), (BAD, BAD, BAD)).save(picture)
    status, out, said = replay(desk)
    assert (status, len(out.splitlines())) == (0, 4)
    note = "note: 2 of 4 frames are not of 40x24: each was resized on the CPU first"
    assert said.splitlines()[-1] == note
    Image.new("RGB", (40, 24), (GOOD, GOOD, GOOD)).save(desk / "rec" / "files" / f"grey{GOOD}.png")
    assert "resized" not in replay(desk)[2]


def test_unreadable_picture_is_invalid_and_the_rest_is_judged(desk):
    picture = desk / "rec" / "files" / f"grey{BAD}.png"
    picture.write_bytes(b"no picture")
    status, out, said = replay(desk)
    assert status == 0
    assert out.count("INVALID") == 2
    assert "2 pass, 0 fail, 2 invalid" in said


def test_missing_picture_is_called_missing(desk):
    (desk / "rec" / "files" / f"grey{BAD}.png").unlink()
    status, out, _ = replay(desk)
    assert status == 0
    assert out.count(f"(frame unreadable: the file grey{BAD}.png is missing)") == 2


@pytest.mark.parametrize(
    ("words", "status", "found"),
    [
        (("--split", "train"), 2, "only test"),
        (("--form", "int4"), 2, "Did you mean 'int8'"),
        (("--provider", "cuda"), 3, "CUDAExecutionProvider"),
        (("--limit", "0"), 2, "below 1"),
        (("--threads", "x"), 2, "--threads"),
    ],
)
def test_wrong_option_ends_with_its_status(desk, words, status, found):
    ended, out, said = replay(desk, *words)
    assert (ended, out) == (status, "")
    assert found in said


def test_missing_bundle_or_recording_and_foreign_channels(desk, tmp_path):
    (desk / "bundle").rename(desk / "moved")
    assert replay(desk)[0] == 2
    (desk / "moved").rename(desk / "bundle")
    (desk / "rec").rename(desk / "old")
    status, _, said = replay(desk)
    assert (status, "a recording (a folder with" in said) == (2, True)
    write_squares(desk / "rec", [GOOD], channels=(CHANNELS[0], Channel("load", "kN", 1600.0)))
    status, _, said = replay(desk)
    assert status == 2
    assert "load:kN:1600" in said
    write_squares(desk / "image-only", [GOOD], channels=(), without_sensor=[0])
    (desk / "rec").rename(desk / "foreign")
    (desk / "image-only").rename(desk / "rec")
    status, out, said = replay(desk)
    assert (status, out) == (2, "")
    assert "drive_end:g:1600, load:N:1600, found none" in said


def test_percentile_is_a_value_that_occurred():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, p) for p in (1, 50, 99, 100)] == [1.0, 3.0, 5.0, 5.0]
