"""Which frames a bundle is made for: one size, the recording's or the one asked for."""

import msgspec
import numpy as np
import pytest
from export_stand_in import SIZE, write_small_recording
from PIL import Image

from edge.errors import InputError
from edge.model_spec import ImageInput
from edge.recording.format import read_pixels
from export.frame import frame_size, recording_of_frames, saying_what_was_left_out

IMAGE = ImageInput(64, 64)
STATION = ImageInput(height=48, width=100)


def of_sizes(folder, sizes):
    """A recording whose pictures are, in turn, of these sizes (width, height)."""
    recording = write_small_recording(folder, {"train": 12, "val": 6})
    for place, row in enumerate(recording.rows):
        path = recording.path_of(row.image)
        Image.open(path).resize(sizes[place % len(sizes)]).save(path)
    return recording


def test_frames_of_one_size_go_in_whole(tmp_path):
    recording = of_sizes(tmp_path / "rec", [(100, 48)])
    assert recording_of_frames(recording, "", IMAGE) == (STATION, recording)
    assert recording_of_frames(recording, "100x48", IMAGE) == (STATION, recording)


def test_model_asks_for_the_hosts_resize(tmp_path):
    recording = of_sizes(tmp_path / "rec", [(100, 48), (32, 32)])
    assert recording_of_frames(recording, "model", IMAGE) == (None, recording)


def test_frames_of_the_students_own_size_need_no_resize(tmp_path):
    recording = write_small_recording(tmp_path / "rec", {"train": 3})
    assert ImageInput(SIZE, SIZE) == IMAGE
    assert recording_of_frames(recording, "", IMAGE) == (None, recording)


def test_several_sizes_are_a_choice_for_a_person(tmp_path):
    recording = of_sizes(tmp_path / "rec", [(100, 48), (32, 40), (100, 48)])
    with pytest.raises(
        InputError,
        match=r"100x48 \(8 train, 4 val\), 32x40 \(4 train, 2 val\).*--frame 100x48.*model",
    ):
        recording_of_frames(recording, "", IMAGE)
    frame, kept = recording_of_frames(recording, "100x48", IMAGE)
    assert frame == STATION
    assert len(kept.rows) == 12
    assert {frame_size(kept.path_of(row.image)) for row in kept.rows} == {STATION}
    assert len(recording.rows) == 18


def test_size_with_the_most_to_calibrate_on_is_suggested(tmp_path):
    recording = write_small_recording(tmp_path / "rec", {"test": 15, "train": 6})
    for row in recording.rows_in("test"):
        path = recording.path_of(row.image)
        Image.open(path).resize((100, 48)).save(path)
    sizes = r"64x64 \(0 test, 6 train\), 100x48 \(15 test, 0 train\)"
    with pytest.raises(InputError, match=rf"{sizes}.*--frame 64x64:"):
        recording_of_frames(recording, "", IMAGE)


def test_error_about_what_is_left_says_how_much_was_left_out(tmp_path):
    recording = of_sizes(tmp_path / "rec", [(100, 48), (32, 40), (100, 48)])
    _, kept = recording_of_frames(recording, "32x40", IMAGE)
    with (
        pytest.raises(InputError, match=r"12 samples of other sizes .* by --frame 32x40\.$"),
        saying_what_was_left_out(recording, kept, "32x40"),
    ):
        kept.rows_in("test")
    with pytest.raises(InputError) as whole, saying_what_was_left_out(recording, recording, ""):
        recording.rows_in("test")
    assert "left out" not in str(whole.value)


def test_size_may_be_written_with_a_large_x(tmp_path):
    recording = of_sizes(tmp_path / "rec", [(100, 48), (32, 40)])
    assert recording_of_frames(recording, "32X40", IMAGE)[0] == ImageInput(height=40, width=32)


def test_size_that_no_frame_has_is_refused_with_those_there_are(tmp_path):
    recording = of_sizes(tmp_path / "rec", [(n, 20) for n in range(20, 26)])
    with pytest.raises(
        InputError, match=r"of 1280x960.*20x20 \(2 train, 1 val\), .*and others.*--frame model"
    ):
        recording_of_frames(recording, "1280x960", IMAGE)


NO_SIZES = ("1280", "1280x", "x960", "0x960", "1280x0", "-1x5", "1280 x 960", "models")
LIKE_SIZES = ("1\uff1280x960", "1e3x960", "1280x960\n", "999999x1", "../x1", "1280x960x3")


@pytest.mark.parametrize("asked", [*NO_SIZES, *LIKE_SIZES])
def test_what_is_no_size_is_refused(tmp_path, asked):
    recording = of_sizes(tmp_path / "rec", [(100, 48)])
    with pytest.raises(InputError, match="--frame: expected WIDTHxHEIGHT") as refusal:
        recording_of_frames(recording, asked, IMAGE)
    assert refusal.value.found == f"'{asked}'"


def test_empty_recording_is_left_to_who_needs_its_samples(tmp_path):
    recording = write_small_recording(tmp_path / "rec", {})
    assert recording_of_frames(recording, "", IMAGE) == (None, recording)
    assert recording_of_frames(recording, "1280x960", IMAGE) == (None, recording)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_turned_picture_has_the_size_that_is_read(tmp_path, suffix):
    path, exif = tmp_path / f"turned.{suffix}", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((48, 100, 3), np.uint8)).save(path, exif=exif)
    assert read_pixels(path).shape[:2] == (100, 48)
    assert frame_size(path) == ImageInput(height=100, width=48)


def test_picture_that_cannot_be_read_is_named(tmp_path):
    recording = of_sizes(tmp_path / "rec", [(100, 48)])
    row = recording.rows[3]
    recording.path_of(row.image).write_bytes(b"no picture")
    with pytest.raises(InputError, match=row.image):
        recording_of_frames(recording, "", IMAGE)
    recording.path_of(row.image).unlink()
    with pytest.raises(InputError, match=row.image):
        recording_of_frames(recording, "100x48", IMAGE)


def test_size_survives_the_manifest():
    assert msgspec.json.decode(msgspec.json.encode(STATION), type=ImageInput) == STATION
