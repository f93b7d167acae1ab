"""Reading a recording's files: every kind of picture and readings, and every way to spoil them."""

import io
from datetime import datetime, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge.errors import InputError
from edge.recording.format import (
    Recording,
    RecordingHeader,
    SampleRow,
    is_safe_relative,
    nanoseconds_of,
    read_pixels,
    read_readings,
    write_recording,
)
from edge.sample import Channel

CHANNELS = (Channel("a", "g", 1000.0), Channel("b", "A", 1000.0))


def picture(width=9, height=6):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def bytes_of(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_a_picture_of_any_mode_becomes_three_channels_of_bytes(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    picture().convert(mode).save(path)
    pixels = read_pixels(path)
    assert (pixels.shape, pixels.dtype) == ((6, 9, 3), np.uint8)
    if mode in ("L", "LA", "1"):
        assert (pixels[:, :, 0] == pixels[:, :, 2]).all()


def test_sixteen_bit_grey_keeps_its_scale(tmp_path):
    grey = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "x.png")
    assert read_pixels(tmp_path / "x.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood on its side
    picture().save(tmp_path / "x.jpg", exif=exif)
    assert read_pixels(tmp_path / "x.jpg").shape == (9, 6, 3)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    picture(100, 100).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="readable picture"):
        read_pixels(tmp_path / "x.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    kept=st.floats(0.0, 1.0),
)
def test_no_spoilt_picture_is_more_than_an_input_error(tmp_path_factory, kind, changes, kept):
    spoilt = bytearray(bytes_of(picture(), kind))
    for place, byte in changes:
        spoilt[int(place * (len(spoilt) - 1))] = byte
    path = tmp_path_factory.getbasetemp() / "spoilt.bin"
    path.write_bytes(spoilt[: int(kept * len(spoilt))])
    try:
        assert read_pixels(path).dtype == np.uint8
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    kept=st.floats(0.0, 1.0),
)
def test_no_spoilt_readings_are_more_than_an_input_error(tmp_path_factory, changes, kept):
    buffer = io.BytesIO()
    np.save(buffer, np.ones((2, 5), dtype=np.float16))
    spoilt = bytearray(buffer.getvalue())
    for place, byte in changes:
        spoilt[int(place * (len(spoilt) - 1))] = byte
    path = tmp_path_factory.getbasetemp() / "spoilt.npy"
    path.write_bytes(spoilt[: int(kept * len(spoilt))])
    try:
        assert read_readings(path, CHANNELS).dtype == np.float32
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.zeros((3, 5), np.float32), r"float32 \[3, 5\]"),
        (np.zeros(5, np.float64), r"float64 \[1, 5\]"),
        (np.zeros((2, 5, 1)), r"\[2, 5, 1\]"),
        (np.zeros((2, 5), np.complex64), "complex64"),
        (np.array([["1", "2"], ["3", "4"]]), "<U1"),
    ],
)
def test_readings_that_do_not_fit_the_channels_are_refused(tmp_path, values, found):
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(InputError, match=found):
        read_readings(tmp_path / "x.npy", CHANNELS)


def test_pickled_readings_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError):
        read_readings(tmp_path / "x.npy", CHANNELS)


def test_an_archive_of_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 5)))
    with pytest.raises(InputError, match="archive"):
        read_readings(tmp_path / "x.npz", CHANNELS)


def test_half_precision_integers_and_doubles_become_single_precision(tmp_path):
    for kind in (np.float16, np.int16, np.float64):
        np.save(tmp_path / "x.npy", np.array([[1, 2], [3, 4]], dtype=kind))
        values = read_readings(tmp_path / "x.npy", CHANNELS)
        assert values.dtype == np.float32
        assert values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b,t,a\n1,2,3\n4,5,6\n", [[3, 6], [1, 4]]),  # by name
        ("x,y\n1,2\n3,4\n", [[1, 3], [2, 4]]),  # none of the names: by position
        ("a,b\n1,nan\n\n3,4\n", [[1, 3], [np.nan, 4]]),
    ],
)
def test_csv_readings_are_taken_by_name_or_by_position(tmp_path, text, expected):
    (tmp_path / "x.csv").write_text(text)
    np.testing.assert_array_equal(read_readings(tmp_path / "x.csv", CHANNELS), expected)


@pytest.mark.parametrize(
    "text", ["", "a,b\n", "a,b\n1,x\n", "a,b\n1\n", "a,c\n1,2\n", "1,2\n4,5\n"]
)
def test_csv_readings_that_could_be_misread_are_refused(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError):
        read_readings(tmp_path / "x.csv", CHANNELS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a;b\n1.5;2.5\n", "semicolons"),
        ("a;b\n1,5;2,5\n", "semicolons"),
        ("a,b\n1;2\n", "semicolons"),
        ("a,b\n1,5,2,5\n", "2 columns in the header, 4 below it, as decimal commas make them"),
    ],
)
def test_a_spreadsheets_semicolons_and_decimal_commas_are_named(tmp_path, text, found):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=f"{found}.*commas between .*columns and decimal points"):
        read_readings(tmp_path / "x.csv", CHANNELS)


def test_semicolons_that_separate_nothing_do_no_harm(tmp_path):
    (tmp_path / "x.csv").write_text("x;1,y;2\n# g; A\n1,2\n3,4\n")
    assert read_readings(tmp_path / "x.csv", CHANNELS).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("name", ["gone.npy", "gone.csv"])
def test_a_missing_sensor_file_is_to_be_restored_not_named_again(tmp_path, name):
    with pytest.raises(InputError, match="Restore the file") as caught:
        read_readings(tmp_path / name, CHANNELS)
    assert "--sensor" not in str(caught.value)


def test_times_without_a_zone_are_utc_and_zones_are_heeded():
    noon = int(datetime(2026, 3, 2, 12, tzinfo=timezone.utc).timestamp()) * 10**9
    assert nanoseconds_of("2026-03-02T12:00:00") == noon
    assert nanoseconds_of("2026-03-02T12:00:00.250Z") == noon + 250_000_000
    assert nanoseconds_of("2026-03-02T14:00:00+02:00") == noon
    assert nanoseconds_of(None) == 0


@pytest.mark.parametrize("digits", range(1, 12))
@pytest.mark.parametrize("zone", ["", "Z", "+00:00"])
def test_a_fraction_of_any_length_is_read_to_the_nanosecond(digits, zone):
    noon = nanoseconds_of("2026-03-02T12:00:00Z")
    fraction = "12345678912"[:digits]
    expected = int(fraction[:9].ljust(9, "0"))
    assert nanoseconds_of(f"2026-03-02T12:00:00.{fraction}{zone}") == noon + expected
    assert nanoseconds_of(f"2026-03-02 12:00:00,{fraction}{zone}") == noon + expected


@pytest.mark.parametrize("text", ["2026-03-02T12:00:00.", "2026-03-02T12:00:00.1x", "12:00:00.5"])
def test_a_fraction_does_not_make_a_time_of_anything(text):
    with pytest.raises(InputError, match="ISO 8601"):
        nanoseconds_of(text)


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_an_input_error(text):
    try:
        assert isinstance(nanoseconds_of(text), int)
    except InputError as error:
        assert "ISO 8601" in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("path", ["a.png", "a/b.png", "./a.png", "a..b/c.png"])
def test_a_path_that_stays_inside_is_safe(path):
    assert is_safe_relative(path)


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../../b", "a/..", "..", "a\\..\\b"])
def test_a_path_that_may_leave_is_not_safe(path):
    assert not is_safe_relative(path)


def written(folder, **changes):
    header = RecordingHeader("r", CHANNELS, ("ok",), 1.0, "a test")
    row = SampleRow("s1", "a.png", "0" * 64, "ok", "train", "p1", **changes)
    write_recording(folder, header, [row])
    return folder


def test_what_is_written_reads_back_the_same(tmp_path):
    recording = Recording.open(written(tmp_path, captured_at="2026-03-02T12:00:00Z"))
    again = Recording.open(tmp_path)
    assert again.header == recording.header
    assert again.rows == recording.rows
    assert again.digest() == recording.digest()


def test_the_digest_follows_the_files(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = Recording.open(written(tmp_path / "one", sensor="a.npy", sensor_digest="1" * 64))
    two = Recording.open(written(tmp_path / "two", sensor="a.npy", sensor_digest="2" * 64))
    assert one.digest() != two.digest()


def test_a_folder_that_is_no_recording_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="edge import"):
        Recording.open(tmp_path)


def test_a_recording_of_a_later_schema_is_refused(tmp_path):
    path = written(tmp_path) / "recording.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(InputError, match="schema 2"):
        Recording.open(tmp_path)


@pytest.mark.parametrize(
    "line", [b"{", b'{"sample_id": "x"}', b'{"sample_id": "\x80"}', b"[" * 100_000]
)
def test_a_damaged_row_is_named_by_its_line(tmp_path, line):
    path = written(tmp_path) / "samples.jsonl"
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(InputError, match="line 2"):
        Recording.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"name": "\x80"}', b'{"schema": 1}'])
def test_a_damaged_header_is_named(tmp_path, content):
    (written(tmp_path) / "recording.json").write_bytes(content)
    with pytest.raises(InputError, match=r"recording\.json"):
        Recording.open(tmp_path)


def test_a_row_that_names_a_file_outside_is_refused(tmp_path):
    with pytest.raises(InputError, match="outside the recording"):
        Recording.open(written(tmp_path, mask="../../etc/passwd"))


def test_an_unknown_split_lists_those_there_are(tmp_path):
    with pytest.raises(InputError, match=r"only train.*Name one of those"):
        Recording.open(written(tmp_path)).rows_in("test")


def test_rows_come_from_the_first_split_that_occurs(tmp_path):
    recording = Recording.open(written(tmp_path))
    assert recording.rows_in("val", "train") == recording.rows
    with pytest.raises(InputError, match=r"'val' or 'test', found only train\. Elsewhere."):
        recording.rows_in("val", "test", do="Elsewhere.")


def test_a_recording_without_samples_names_no_splits(tmp_path):
    (written(tmp_path) / "samples.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match=r"no samples at all\. Import parts into it first"):
        Recording.open(tmp_path).rows_in("test", do="Name another.")


def test_a_csv_header_without_end_is_refused_with_the_file_named(tmp_path):
    path = tmp_path / "endless.csv"
    path.write_text("x" * 200_000 + "\n1.0\n")
    with pytest.raises(InputError, match="endless"):
        read_readings(path, (Channel("force", "N", 50.0),))


def test_an_unlabelled_sample_outside_of_train_is_refused_when_the_recording_is_opened(tmp_path):
    header = RecordingHeader("r", (), ("ok",), 1.0, "test")
    row = SampleRow("a", "a.png", "0" * 64, "", "train", "a")
    write_recording(tmp_path, header, [row])
    assert Recording.open(tmp_path).rows[0].label == ""
    for split in ("val", "test", ""):
        other = SampleRow("b", "b.png", "0" * 64, "", split, "b")
        write_recording(tmp_path, header, [row, other])
        with pytest.raises(InputError, match=f"samples.jsonl, line 2.*'b' of split '{split}'"):
            Recording.open(tmp_path)
