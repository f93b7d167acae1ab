"""Importing an image folder: what is taken, what is refused, and in which words."""

import numpy as np
import pytest
from image_folders import (
    plain_rows,
    tree_of,
    write_folder,
    write_image,
    write_readings,
    write_table,
)

from edge.artefact import new_folder
from edge.errors import InputError
from edge.recording.folder import FolderImport, channels_from_texts, import_folder
from edge.recording.format import Recording

CHANNELS = channels_from_texts(["drive:g:12000", "fan:g:12000"])


def imported(source, out, channels=CHANNELS, ok=None):
    with new_folder(out) as partial:
        _, remarks = import_folder(FolderImport(source, channels, ok), partial)
    return Recording.open(out), remarks


def refusal(source, out, channels=CHANNELS, ok=None):
    with pytest.raises(InputError) as caught:
        imported(source, out, channels, ok)
    assert not out.exists()
    assert list(out.parent.glob(".*partial")) == []
    return str(caught.value)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_same_rows_in_any_table_give_the_same_samples(tmp_path, kind):
    source = write_folder(tmp_path / "set", plain_rows(), kind)
    reference = write_folder(tmp_path / "reference", plain_rows(), "csv")
    recording, _ = imported(source, tmp_path / "rec")
    assert recording.rows == imported(reference, tmp_path / "rec2")[0].rows
    assert recording.header.classes == ("ok", "dent")
    assert recording.header.channels == CHANNELS


def test_originals_are_copied_byte_for_byte_and_left_alone(tmp_path):
    source = write_folder(tmp_path / "set", plain_rows())
    before = tree_of(source)
    imported(source, tmp_path / "rec")
    copies = tree_of(tmp_path / "rec" / "files")
    assert tree_of(source) == before
    assert copies == {name: content for name, content in before.items() if name != "metadata.csv"}


def test_importing_twice_gives_the_same_bytes(tmp_path):
    source = write_folder(tmp_path / "set", plain_rows())
    imported(source, tmp_path / "one")
    imported(source, tmp_path / "elsewhere" / "two")
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "elsewhere" / "two")


def test_splits_are_made_by_part_and_every_split_has_normal_samples(tmp_path):
    recording, remarks = imported(write_folder(tmp_path / "set", plain_rows(60)), tmp_path / "rec")
    splits = {}
    for row in recording.rows:
        splits.setdefault(row.part_id, set()).add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    for split in ("train", "val", "test"):
        assert any(row.label == "ok" for row in recording.rows_in(split))
    assert any("made by part_id" in remark for remark in remarks)


def test_given_splits_are_kept_as_they_are(tmp_path):
    rows = plain_rows(9)
    for index, row in enumerate(rows):
        row["split"] = ("train", "val", "shift")[index % 3]
    recording, remarks = imported(write_folder(tmp_path / "set", rows), tmp_path / "rec")
    assert [row.split for row in recording.rows] == [row["split"] for row in rows]
    assert remarks == ()


def test_a_split_in_some_rows_only_is_refused(tmp_path):
    rows = plain_rows(9)
    for row in rows[1:]:
        row["split"] = "train"
    message = refusal(write_folder(tmp_path / "set", rows), tmp_path / "rec")
    assert "metadata.csv, line 2, split" in message
    assert "1 of 9 rows without" in message


def test_without_part_id_copies_of_one_image_still_share_a_split(tmp_path):
    rows = [{key: row[key] for key in ("file_name", "label")} for row in plain_rows(40)]
    source = write_folder(tmp_path / "set", rows)
    for index in range(0, 40, 2):
        twin = source / rows[index + 1]["file_name"]
        twin.write_bytes((source / rows[index]["file_name"]).read_bytes())
    recording, remarks = imported(source, tmp_path / "rec", channels=())
    assert any("40 samples without a part_id" in remark for remark in remarks)
    for first, second in zip(recording.rows[::2], recording.rows[1::2], strict=True):
        assert first.image_digest == second.image_digest
        assert first.split == second.split


def test_answers_and_other_columns_are_kept_out_and_named(tmp_path):
    rows = [{**row, "defect_area": "0.7", "gaps": ""} for row in plain_rows()]
    recording, remarks = imported(write_folder(tmp_path / "set", rows), tmp_path / "rec")
    assert any("defect_area, gaps" in remark for remark in remarks)
    assert b"0.7" not in (recording.folder / "samples.jsonl").read_bytes()


def test_a_misspelt_column_is_named_with_its_nearest(tmp_path):
    rows = [{"filename": row["file_name"], "label": row["label"]} for row in plain_rows()]
    write_table(tmp_path, rows)
    message = refusal(tmp_path, tmp_path / "out" / "rec")
    assert "column 'file_name'" in message
    assert "Did you mean 'filename'?" in message


@pytest.mark.parametrize(
    ("labels", "ok", "normal"),
    [("ok,dent", None, "ok"), ("good,dent", None, "good"), ("sharp,dull", "sharp", "sharp")],
)
def test_the_normal_class_comes_first(tmp_path, labels, ok, normal):
    rows = plain_rows()
    names = labels.split(",")
    for index, row in enumerate(rows):
        row["label"] = names[index % 2]
    recording, _ = imported(write_folder(tmp_path / "set", rows), tmp_path / "rec", ok=ok)
    assert recording.normal_class == normal


def test_without_a_normal_label_the_labels_are_listed(tmp_path):
    rows = [{**row, "label": f"class{index % 2}"} for index, row in enumerate(plain_rows())]
    source = write_folder(tmp_path / "set", rows)
    message = refusal(source, tmp_path / "rec")
    assert "class0, class1" in message
    assert "--ok" in message
    assert "Did you mean 'class0'?" in refusal(source, tmp_path / "rec", ok="clas0")


def test_a_sensor_column_without_sensor_options_is_refused(tmp_path):
    source = write_folder(tmp_path / "set", plain_rows())
    assert "--sensor NAME:UNIT:HZ" in refusal(source, tmp_path / "rec", channels=())


def test_sensor_options_without_a_sensor_column_are_refused(tmp_path):
    source = write_folder(tmp_path / "set", plain_rows(sensor=False))
    assert "'sensor_file_name'" in refusal(source, tmp_path / "rec")


def test_another_number_of_channels_is_refused_with_the_shape(tmp_path):
    source = write_folder(tmp_path / "set", plain_rows())
    message = refusal(source, tmp_path / "rec", channels=CHANNELS[:1])
    assert "sensors/000.npy" in message
    assert "[2, 64]" in message


def test_readings_in_columns_are_recognised_as_transposed(tmp_path):
    source = write_folder(tmp_path / "set", plain_rows())
    np.save(source / "sensors/004.npy", np.zeros((64, 2), dtype=np.float32))
    message = refusal(source, tmp_path / "rec")
    assert "metadata.csv, line 6" in message
    assert "transposed" in message


def test_windows_of_different_lengths_are_refused_naming_the_odd_one(tmp_path):
    source = write_folder(tmp_path / "set", plain_rows())
    write_readings(source / "sensors/007.npy", readings=63)
    message = refusal(source, tmp_path / "rec")
    assert "sensors/007.npy" in message
    assert "with 63" in message
    assert "most hold 64" in message


@pytest.mark.parametrize("column", ["file_name", "sensor_file_name"])
def test_a_missing_file_is_an_error_that_names_the_row(tmp_path, column):
    rows = plain_rows()
    source = write_folder(tmp_path / "set", rows)
    (source / rows[3][column]).unlink()
    message = refusal(source, tmp_path / "rec")
    assert f"metadata.csv, line 5, {column}" in message
    assert rows[3][column] in message


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "images/../../secret.png", "a\\b"]
)
def test_a_path_out_of_the_folder_is_refused(tmp_path, name):
    rows = plain_rows()
    source = write_folder(tmp_path / "set", rows)
    write_image(tmp_path / "secret.png")
    rows[0]["file_name"] = name
    write_table(source, rows)
    message = refusal(source, tmp_path / "rec")
    assert "metadata.csv, line 2" in message
    assert "a file inside" in message


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    rows = plain_rows()
    source = write_folder(tmp_path / "set", rows)
    write_image(tmp_path / "secret.png")
    (source / rows[0]["file_name"]).unlink()
    (source / rows[0]["file_name"]).symlink_to(tmp_path / "secret.png")
    assert "not a link" in refusal(source, tmp_path / "rec")


def test_spoilt_files_are_imported_as_they_came(tmp_path):
    rows = plain_rows()
    source = write_folder(tmp_path / "set", rows)
    (source / rows[0]["file_name"]).write_bytes(b"no picture")
    (source / rows[1]["sensor_file_name"]).write_bytes(b"no readings")
    recording, _ = imported(source, tmp_path / "rec")
    assert len(recording.rows) == len(rows)
    for row in recording.rows[:2]:
        with pytest.raises(InputError):
            recording.read_sample(row)


def test_sensor_files_of_which_none_can_be_read_are_refused(tmp_path):
    rows = plain_rows()
    source = write_folder(tmp_path / "set", rows)
    for row in rows:
        row["sensor_file_name"] = row["sensor_file_name"].replace(".npy", ".csv")
        (source / row["sensor_file_name"]).write_text("drive,other\n1,2\n")
    write_table(source, rows)
    message = refusal(source, tmp_path / "rec")
    assert "sensors/000.csv" in message
    assert "only some of the channels" in message


def test_a_time_that_is_none_names_its_row(tmp_path):
    rows = plain_rows()
    rows[4]["captured_at"] = "yesterday"
    message = refusal(write_folder(tmp_path / "set", rows), tmp_path / "rec")
    assert "metadata.csv, line 6, captured_at" in message
    assert "'yesterday'" in message


def test_an_image_in_two_rows_gives_two_samples(tmp_path):
    rows = plain_rows()
    rows.append(rows[0])
    recording, _ = imported(write_folder(tmp_path / "set", rows), tmp_path / "rec")
    names = [row.sample_id for row in recording.rows]
    assert names[0] == "000"
    assert names[-1] == "000#2"


def test_images_of_one_name_in_two_folders_keep_the_folder_in_their_id(tmp_path):
    rows = [*plain_rows(), {**plain_rows()[0], "file_name": "more/000.png"}]
    recording, _ = imported(write_folder(tmp_path / "set", rows), tmp_path / "rec")
    assert recording.rows[0].sample_id == "images/000"
    assert recording.rows[-1].sample_id == "more/000"


def test_sensor_files_may_be_csv_with_columns_in_any_order(tmp_path):
    rows = [{**row, "sensor_file_name": row["file_name"][7:10] + ".csv"} for row in plain_rows()]
    source = tmp_path / "set"
    for row in rows:
        write_image(source / row["file_name"])
        (source / row["sensor_file_name"]).write_text("time,fan,drive\n0,1,2\n1,3,4\n")
    write_table(source, rows)
    recording, _ = imported(source, tmp_path / "rec")
    window = recording.read_sample(recording.rows[0]).window
    assert window.values.tolist() == [[2.0, 4.0], [1.0, 3.0]]


NONSENSE = (
    "drive drive:g drive:g: drive:g:0 drive:g:-5 drive:g:nan drive:g:inf :g:5 drive::5 "
    "drive:g:1e12 drive:g:5:6"
)


@pytest.mark.parametrize("text", NONSENSE.split())
def test_a_sensor_option_that_makes_no_sense_is_refused(text):
    with pytest.raises(InputError, match="NAME:UNIT:HZ"):
        channels_from_texts([text])


def test_a_channel_named_twice_is_refused():
    with pytest.raises(InputError, match="'drive' 2 times"):
        channels_from_texts(["drive:g:1", "drive:A:1"])


def test_too_few_parts_for_three_splits_are_imported_and_said(tmp_path):
    source = write_folder(tmp_path / "set", plain_rows(12, parts=2))
    recording, remarks = imported(source, tmp_path / "rec")
    assert set(recording.splits) == {"train", "test"}
    assert remarks[-1] == "Too few parts: no sample labelled 'ok' in val."


@pytest.mark.real_data
def test_milling_imports_without_a_sensor(real_data, tmp_path):
    recording, remarks = imported(real_data / "milling", tmp_path / "rec", channels=(), ok="sharp")
    assert len(recording.rows) == 28
    assert recording.header.classes == ("sharp", "dulled", "used")
    assert "force_x_file_name" in remarks[0]
    assert {row.split for row in recording.rows} == {"train", "val", "test"}


@pytest.mark.real_data
def test_ballscrew_keeps_its_splits_and_reads_both_channels(real_data, tmp_path):
    recording, _ = imported(real_data / "ballscrew", tmp_path / "rec")
    assert [len(recording.rows_in(s)) for s in ("train", "val", "test", "shift")] == [
        530, 137, 341, 69,
    ]  # fmt: skip
    sample = recording.read_sample(recording.rows[0])
    assert sample.window.values.shape == (2, 2048)
    assert recording.read_mask(recording.rows[0]).any()


def test_unlabelled_parts_are_imported_into_train_alone_and_said(tmp_path):
    rows = plain_rows(60, parts=20)
    for row in rows[:12]:
        row["label"] = ""
    recording, remarks = imported(write_folder(tmp_path / "set", rows), tmp_path / "rec")
    unlabelled = [row for row in recording.rows if row.label == ""]
    assert len(unlabelled) == 12
    assert {row.split for row in unlabelled} == {"train"}
    assert recording.header.classes == ("ok", "dent")
    assert any("12 samples without a label" in remark for remark in remarks)
    parts = {row.part_id for row in unlabelled}
    assert {row.split for row in recording.rows if row.part_id in parts} == {"train"}


@pytest.mark.parametrize("split", ["val", "test", "holdout"])
def test_a_part_that_something_is_measured_on_needs_a_label(tmp_path, split):
    rows = [{**row, "split": "train"} for row in plain_rows()]
    rows[4].update(label="", split=split)
    message = refusal(write_folder(tmp_path / "set", rows), tmp_path / "rec")
    assert "metadata.csv, line 6" in message
    assert "expected a label, for only parts of split 'train' may go without one" in message
    assert f"'004' of split '{split}'" in message


def test_a_table_without_any_label_is_refused(tmp_path):
    rows = [{**row, "label": ""} for row in plain_rows()]
    assert "every cell is empty" in refusal(write_folder(tmp_path / "set", rows), tmp_path / "rec")
