"""From a station's kept pictures to a recording that a person has corrected: `edge import kept`."""

import csv
import shutil

import msgspec
import numpy as np
import pytest
from test_device_agents_outbox_kept import CHANNELS, LIMITS, inspection, msgspec_free, part

from device_agents.outbox.kept import KeptPictures, places_in
from device_agents.outbox.kept_part import KeptPart
from edge.cli.main import main
from edge.errors import InputError
from edge.recording.format import Recording
from edge.sample import Channel, Window


@pytest.fixture
def pictures(tmp_path):
    """A station's folder: twelve passes near the threshold, four fails, one that was invalid."""
    kept = KeptPictures.open(tmp_path / "outbox.sqlite", LIMITS)
    for number in range(1, 13):
        assert kept.keep(part(number, ("near",), score=0.48))
    for number in range(13, 17):
        assert kept.keep(part(number, ("fail",), decision="fail", score=0.9))
    assert kept.keep(part(17, ("invalid",), decision="invalid", reason="a\nNaN, in channel 1"))
    assert kept.keep(KeptPart(inspection(18, "invalid"), None, None, None, ("invalid",)))
    return kept.folder


def imported(folder, out, *options):
    return main(["import", "kept", str(folder), "--out", str(out), *options])


def table_of(out):
    with (out / "files" / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_copied_folder_becomes_a_recording_with_the_stations_verdicts(pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "copy" / "any name")
    assert imported(tmp_path / "copy" / "any name", tmp_path / "rec") == 0
    recording = Recording.open(tmp_path / "rec")
    assert recording.header.classes == ("good", "scratch", "unknown")
    assert recording.header.channels == CHANNELS
    assert recording.splits == ("unverified",)
    assert [row.label for row in recording.rows] == ["good"] * 12 + ["scratch"] * 4 + ["unknown"]
    sample = recording.read_sample(recording.rows[2])
    assert np.array_equal(sample.window.values, part(3).window.values)
    assert (sample.part_id, sample.frame.pixels.shape) == ("part3", (24, 32, 3))
    said = capsys.readouterr().out
    assert "17 samples" in said
    assert "Parts left out, as their frames could not be read: 1" in said
    assert "--sensor drive_end:g:1600 load:N:1600 --ok good" in said


def test_nothing_is_trained_on_labels_that_nobody_verified(pictures, tmp_path):
    imported(pictures, tmp_path / "rec")
    with pytest.raises(InputError, match="found only unverified"):
        Recording.open(tmp_path / "rec").rows_in("train")


def test_the_corrected_table_is_taken_in_as_the_advice_says(pictures, tmp_path, capsys):
    imported(pictures, tmp_path / "rec")
    table = tmp_path / "rec" / "files" / "metadata.csv"
    rows = table_of(tmp_path / "rec")
    assert rows[12]["verdict"] == "fail"
    assert rows[16]["label"] == "", "what was not judged waits for a person"
    assert rows[16]["reason"] == "a\nNaN, in channel 1"
    command = capsys.readouterr().out.splitlines()[-1].split()[1:]
    command[-1] = str(tmp_path / "uncorrected")
    assert main(command) == 0
    assert "samples without a label" in capsys.readouterr().out, (
        "what waits for a person is counted"
    )
    assert len(Recording.open(tmp_path / "uncorrected").rows_in("train")) > 0
    command[-1] = str(tmp_path / "corrected")
    rows[0]["label"], rows[16]["label"] = "dent", "scratch"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    assert main(command) == 0
    corrected = Recording.open(tmp_path / "corrected")
    assert corrected.header.classes == ("good", "dent", "scratch")
    assert corrected.rows[0].label == "dent"
    assert {row.split for row in corrected.rows} <= {"train", "val", "test"}
    assert "anomaly_score" in capsys.readouterr().out, "what is no input of a model is kept out"


def test_windows_of_other_channels_are_left_out_by_name(pictures, tmp_path, capsys):
    kept = KeptPictures.open(tmp_path / "outbox.sqlite", LIMITS)
    other = Window(np.zeros((1, 9), np.float32), (Channel("fan", "g", 800.0),), 1)
    assert kept.keep(msgspec_free(part(40), window=other))
    assert imported(pictures, tmp_path / "rec") == 0
    assert "Windows left out, of other channels or another length: 1" in capsys.readouterr().out
    assert Recording.open(tmp_path / "rec").rows[-1].sensor is None
    assert table_of(tmp_path / "rec")[-1]["sensor_file_name"] == ""


def test_pictures_without_sensors_need_none(tmp_path, capsys):
    kept = KeptPictures.open(tmp_path / "outbox.sqlite", LIMITS)
    for number in range(3):
        kept.keep(msgspec_free(part(number), window=None))
    assert imported(kept.folder, tmp_path / "rec") == 0
    assert "--sensor" not in capsys.readouterr().out
    assert Recording.open(tmp_path / "rec").header.channels == ()


def test_damaged_and_foreign_parts_are_left_out_and_counted(pictures, tmp_path, capsys):
    places = places_in(pictures)
    (places[0].path / "inspection.json").write_bytes(b"{" * places[0].size)
    (places[1].path / "window.npy").unlink()
    size = (places[2].path / "kept.json").stat().st_size
    (places[2].path / "kept.json").write_bytes(b"\xff" * size)
    renamed = places[3].path.with_name(places[3].path.name[:-1] + "99")
    places[3].path.rename(renamed)
    (pictures / "notes.txt").write_text("mine")
    assert imported(pictures, tmp_path / "rec") == 0
    said = capsys.readouterr().out
    assert "Parts left out, as their files are not whole: 4" in said
    assert "13 samples" in said


def test_hostile_times_and_labels_do_no_harm(tmp_path):
    kept = KeptPictures.open(tmp_path / "outbox.sqlite", LIMITS)
    for number, time in enumerate(("yesterday", "9999-99-99", "", None)):
        kept.keep(part(number, captured_at=time, label='=cmd|" /C"\n', part_id="../x"))
    assert imported(kept.folder, tmp_path / "rec") == 0
    recording = Recording.open(tmp_path / "rec")
    assert {row.captured_at for row in recording.rows} == {None}
    assert table_of(tmp_path / "rec")[0]["part_id"] == "../x"


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "recording"])
def test_folder_that_holds_no_kept_pictures_is_refused_in_words(tmp_path, kind, capsys):
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("x")
    elif kind != "missing":
        place.mkdir()
        if kind == "recording":
            (place / "recording.json").write_text("{}")
    assert imported(place, tmp_path / "rec") == 2
    assert "kept pictures (OUTBOX.pictures, or a copy of it)" in capsys.readouterr().err
    assert not (tmp_path / "rec").exists()


def test_inspection_in_a_kept_part_is_the_published_one(pictures):
    found = msgspec.json.decode((places_in(pictures)[0].path / "inspection.json").read_bytes())
    assert found["decision"] == "pass"
    assert found["schema"] == 1
