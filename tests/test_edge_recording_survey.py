"""Every oddity that `edge recordings show` promises, each made in a real recording."""

import numpy as np
import pytest
from image_folders import plain_rows, write_folder, write_image, write_mask, write_table

from edge.artefact import new_folder
from edge.recording.folder import FolderImport, channels_from_texts, import_folder
from edge.recording.format import Recording
from edge.recording.oddities import KINDS
from edge.recording.survey import survey_of

CHANNELS = channels_from_texts(["drive:g:12000", "fan:g:12000"])


def ready_rows():
    """30 samples whose splits are all there and whose parts stay in one."""
    rows = plain_rows(30, parts=30)
    for index, row in enumerate(rows):
        row["split"] = ("train", "val", "test")[(index // 3) % 3]
    return rows


def surveyed(source, out):
    with new_folder(out) as partial:
        import_folder(FolderImport(source, CHANNELS), partial)
    return survey_of(Recording.open(out))


def found(survey, kind):
    assert kind in KINDS
    return [oddity for oddity in survey.oddities if oddity.kind == kind]


def test_a_recording_in_order_has_no_oddity(tmp_path):
    survey = surveyed(write_folder(tmp_path / "set", ready_rows()), tmp_path / "rec")
    assert survey.oddities == ()
    assert survey.counts["train"] == {"ok": 8, "dent": 4}
    assert survey.image_sizes == {"40x30": 30}
    assert survey.window_readings == {"64": 30}
    assert survey.parts == 30


def test_sensor_ranges_are_those_of_all_readings_together(tmp_path):
    source = write_folder(tmp_path / "set", ready_rows())
    survey = surveyed(source, tmp_path / "rec")
    values = np.concatenate([np.load(path) for path in (source / "sensors").glob("*.npy")], axis=1)
    for channel, readings in zip(survey.channels, values, strict=True):
        assert (channel.unit, channel.rate_hz) == ("g", 12000)
        assert channel.min == readings.min()
        assert channel.max == readings.max()
        assert channel.mean == pytest.approx(readings.mean(), abs=1e-6)
        assert channel.std == pytest.approx(readings.std(), rel=1e-5)


def test_spoilt_windows_are_reported_with_what_is_wrong(tmp_path):
    source = write_folder(tmp_path / "set", ready_rows())
    values = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    nan, constant, stuck = values.copy(), values.copy(), values.copy()
    nan[0, 3:5], nan[1, 0] = np.nan, np.inf
    constant[1] = 0.5
    stuck[0, 10:40] = stuck[0, 10]
    for index, window in enumerate((nan, constant, stuck)):
        np.save(source / f"sensors/{index:03d}.npy", window)
    (source / "sensors/003.npy").write_bytes(b"\x93NUMPY, cut short")
    survey = surveyed(source, tmp_path / "rec")
    assert [oddity.detail for oddity in found(survey, "NaN or infinite")] == [
        "sensors/000.npy: 1 of 64 readings of fan",
        "sensors/000.npy: 2 of 64 readings of drive",
    ]
    assert "fan reads 0.5 g throughout" in found(survey, "constant channel")[0].detail
    assert "drive unchanged for 30 of 64" in found(survey, "stuck channel")[0].detail
    assert found(survey, "unreadable sensor file")[0].sample_ids == ("003",)
    assert len(survey.oddities) == 5


def test_a_channel_that_is_slow_by_nature_is_not_called_stuck(tmp_path):
    source = write_folder(tmp_path / "set", ready_rows())
    for path in (source / "sensors").glob("*.npy"):
        values = np.load(path)
        values[1] = np.repeat([20.0, 21.0 + values[1, 0]], 32)
        np.save(path, values)
    assert found(surveyed(source, tmp_path / "rec"), "stuck channel") == []


def test_a_sample_without_a_window_is_reported_where_the_recording_has_channels(tmp_path):
    rows = ready_rows()
    rows[5]["sensor_file_name"] = ""
    survey = surveyed(write_folder(tmp_path / "set", rows), tmp_path / "rec")
    assert found(survey, "missing sensor")[0].sample_ids == ("005",)
    assert survey.windows == 29


def test_a_truncated_image_is_reported(tmp_path):
    source = write_folder(tmp_path / "set", ready_rows())
    path = source / "images/004.png"
    path.write_bytes(path.read_bytes()[:-900])
    assert found(surveyed(source, tmp_path / "rec"), "unreadable image")[0].sample_ids == ("004",)


def test_copies_are_reported_and_worse_when_in_two_splits_or_labels(tmp_path):
    source = write_folder(tmp_path / "set", ready_rows())
    images = source / "images"
    (images / "001.png").write_bytes((images / "000.png").read_bytes())  # both ok, train
    (images / "005.png").write_bytes((images / "003.png").read_bytes())  # ok and dent, val
    (images / "009.png").write_bytes((images / "006.png").read_bytes())  # test and train
    survey = surveyed(source, tmp_path / "rec")
    same, labels = found(survey, "duplicate file")
    assert same.sample_ids == ("000", "001")
    assert "labelled dent and ok" in labels.detail
    assert "in test and train" in found(survey, "duplicate file in two splits")[0].detail


def test_a_part_in_two_splits_is_reported(tmp_path):
    rows = ready_rows()
    rows[3]["part_id"] = rows[0]["part_id"]
    oddity = found(
        surveyed(write_folder(tmp_path / "set", rows), tmp_path / "rec"), "part in two splits"
    )
    assert oddity[0].detail == "part p0 in train, val"


def test_image_sizes_that_differ_much_are_reported(tmp_path):
    source = write_folder(tmp_path / "set", ready_rows())
    write_image(source / "images/000.png", size=(40, 70))
    write_image(source / "images/001.png", size=(60, 40))
    oddity = found(surveyed(source, tmp_path / "rec"), "odd image size")
    assert [item.detail for item in oddity] == ["40x70, the median is 40x30"]


def test_masks_are_held_against_image_and_label(tmp_path):
    rows = ready_rows()
    for index in (0, 2, 5, 8):
        rows[index]["mask_file_name"] = f"masks/{index}.png"
    source = write_folder(tmp_path / "set", rows)
    write_mask(source / "masks/5.png", size=(41, 30))
    (source / "masks/8.png").write_bytes(b"")
    survey = surveyed(source, tmp_path / "rec")
    assert found(survey, "defect mask on a normal part")[0].sample_ids == ("000",)
    assert "41x30, its image is 40x30" in found(survey, "mask of another size")[0].detail
    assert found(survey, "unreadable mask")[0].sample_ids == ("008",)
    assert survey.masks == 4


def test_a_tiny_class_and_a_missing_split_are_reported(tmp_path):
    rows = ready_rows()
    rows[0]["label"] = "rust"
    rows = [{**row, "split": row["split"].replace("val", "extra")} for row in rows]
    survey = surveyed(write_folder(tmp_path / "set", rows), tmp_path / "rec")
    assert found(survey, "tiny class")[0].detail == "rust: 1 samples in all"
    assert found(survey, "missing split")[0].detail == "no sample is in 'val'"


def test_a_file_changed_after_the_import_is_reported(tmp_path):
    source = write_folder(tmp_path / "set", ready_rows())
    surveyed(source, tmp_path / "rec")
    write_image(tmp_path / "rec/files/images/000.png", size=(41, 30))
    survey = survey_of(Recording.open(tmp_path / "rec"))
    assert found(survey, "changed file")[0].sample_ids == ("000",)


def test_a_file_deleted_after_the_import_is_reported(tmp_path):
    source = write_folder(tmp_path / "set", ready_rows())
    surveyed(source, tmp_path / "rec")
    (tmp_path / "rec/files/sensors/000.npy").unlink()
    survey = survey_of(Recording.open(tmp_path / "rec"))
    assert found(survey, "unreadable sensor file")[0].sample_ids == ("000",)


def test_windows_that_hold_no_finite_reading_leave_the_range_open(tmp_path):
    source = write_folder(tmp_path / "set", ready_rows())
    for path in (source / "sensors").glob("*.npy"):
        np.save(path, np.full((2, 64), np.nan, dtype=np.float32))
    survey = surveyed(source, tmp_path / "rec")
    assert all(channel.mean is None for channel in survey.channels)


def test_times_are_compared_as_times(tmp_path):
    rows = ready_rows()
    for row in rows:
        row["captured_at"] = "2026-01-01T10:00:00Z"
    rows[4]["captured_at"] = "2026-01-01T09:30:00-01:00"
    write_folder(tmp_path / "set", rows)
    write_table(tmp_path / "set", rows)
    survey = surveyed(tmp_path / "set", tmp_path / "rec")
    assert survey.captured_from == "2026-01-01T10:00:00Z"
    assert survey.captured_to == "2026-01-01T09:30:00-01:00"


def test_unlabelled_samples_are_counted_as_such_and_are_no_oddity(tmp_path):
    rows = ready_rows()
    for row in rows[:2]:
        row.update(label="", mask_file_name=row["file_name"].replace("images", "masks"))
    source = write_folder(tmp_path / "set", rows)
    survey = surveyed(source, tmp_path / "rec")
    assert survey.counts["train"] == {"ok": 6, "dent": 4, "unlabelled": 2}
    assert survey.counts["val"]["unlabelled"] == 0
    assert survey.classes == ("ok", "dent")
    assert survey.oddities == ()
