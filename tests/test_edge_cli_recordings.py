"""`edge simulate`, `edge import` and `edge recordings show`, as a person calls them."""

import json

import pytest
from image_folders import plain_rows, tree_of, write_folder, write_image
from PIL import Image

from edge.cli.main import main

SENSOR = ["--sensor", "drive:g:12000", "fan:g:12000"]


@pytest.fixture
def source(tmp_path):
    return write_folder(tmp_path / "set", plain_rows())


def call(*words):
    return main([str(word) for word in words])


def test_import_says_what_came_and_where_to_look_next(source, tmp_path, capsys):
    out = tmp_path / "rec"
    assert call("import", "folder", source, *SENSOR, "--out", out) == 0
    said = capsys.readouterr().out
    assert "30 samples of 10 parts" in said
    assert "note: No split given: made by part_id" in said
    assert f"edge recordings show {out}" in said


def test_sensor_may_be_said_once_for_each_channel_too(source, tmp_path):
    words = ["--sensor", "drive:g:12000", "--sensor", "fan:g:12000"]
    assert call("import", "folder", source, *words, "--out", tmp_path / "one") == 0
    assert call("import", "folder", source, *SENSOR, "--out", tmp_path / "two") == 0
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "two")


def test_an_existing_output_is_kept_unless_forced(source, tmp_path, capsys):
    out = tmp_path / "rec"
    words = ["import", "folder", source, *SENSOR, "--out", out]
    assert call(*words) == 0
    before = tree_of(out)
    assert call(*words) == 2
    assert "--force" in capsys.readouterr().err
    assert tree_of(out) == before
    assert call(*words, "--rate", "5", "--force") == 0
    assert tree_of(out) != before


def test_force_deletes_nothing_that_is_no_recording(source, tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    assert call("import", "folder", source, *SENSOR, "--out", precious, "--force") == 2
    assert call("simulate", "--out", precious, "--force") == 2
    assert (precious / "thesis.txt").exists()
    assert "deletes nothing" in capsys.readouterr().err


def test_the_originals_cannot_be_the_output(source, capsys):
    for out in (source, source.parent):
        assert call("import", "folder", source, *SENSOR, "--out", out, "--force") == 2
        assert "apart from the originals" in capsys.readouterr().err
    assert (source / "metadata.csv").exists()


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_a_pace_that_makes_no_sense_is_refused(source, tmp_path, rate, capsys):
    words = ["import", "folder", source, *SENSOR, "--out", tmp_path / "rec", f"--rate={rate}"]
    assert call(*words) == 2
    assert "--rate: expected parts per second" in capsys.readouterr().err


def test_every_mistake_is_one_paragraph(source, tmp_path, capsys):
    assert call("import", "folder", tmp_path / "nowhere", "--out", tmp_path / "rec") == 2
    assert call("import", "folder", source, "--out", tmp_path / "rec") == 2
    assert call("recordings", "show", tmp_path) == 2
    assert call("simulate", "--size", "big", "--out", tmp_path / "rec") == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 4
    assert all(line.startswith("edge: ") and ": expected " in line for line in lines)
    assert not (tmp_path / "rec").exists()


def test_mvtec_is_imported_and_shown(tmp_path, capsys):
    for index in range(10):
        write_image(tmp_path / f"bottle/train/good/{index}.png")
        write_image(tmp_path / f"bottle/test/crack/{index}.png")
    assert call("import", "mvtec", tmp_path / "bottle", "--out", tmp_path / "rec") == 0
    assert call("recordings", "show", tmp_path / "rec") == 0
    said = capsys.readouterr().out
    assert "no sensor" in said
    assert "crack" in said


def test_show_prints_counts_ranges_and_oddities_and_cuts_long_lists(source, tmp_path, capsys):
    for index in range(12):
        (source / f"images/{index:03d}.png").write_bytes(f"spoilt {index}".encode())
    call("import", "folder", source, *SENSOR, "--out", tmp_path / "rec")
    capsys.readouterr()
    assert call("recordings", "show", tmp_path / "rec") == 0
    said = capsys.readouterr().out
    table = said.split("split")[1].splitlines()
    assert table[0].split() == ["ok", "dent", "all"]
    assert [line.split()[0] for line in table[1:5]] == ["train", "val", "test", "all"]
    assert table[4].split()[1:] == ["20", "10", "30"]
    assert "drive" in said
    assert "12000" in said
    assert "unreadable image: 12" in said
    assert "... and 7 more (all with --json)" in said


def test_show_json_holds_every_oddity(source, tmp_path, capsys):
    for index in range(12):
        (source / f"images/{index:03d}.png").write_bytes(f"spoilt {index}".encode())
    call("import", "folder", source, *SENSOR, "--out", tmp_path / "rec")
    capsys.readouterr()
    assert call("recordings", "show", tmp_path / "rec", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["samples"] == 30
    assert sum(oddity["kind"] == "unreadable image" for oddity in shown["oddities"]) == 12
    assert shown["channels"][0].keys() == {"name", "unit", "rate_hz", "min", "mean", "std", "max"}


def test_show_draws_a_picture_and_keeps_an_existing_one(source, tmp_path):
    call("import", "folder", source, *SENSOR, "--out", tmp_path / "rec")
    words = ["recordings", "show", tmp_path / "rec", "--picture", tmp_path / "sheet.png"]
    assert call(*words) == 0
    assert Image.open(tmp_path / "sheet.png").width > 500
    assert call(*words) == 2
    assert call(*words, "--force") == 0


def test_simulate_writes_a_recording_with_an_overview(tmp_path, capsys):
    words = ["simulate", "--parts", "16", "--size", "64x48", "--seed", "5"]
    assert call(*words, "--out", tmp_path / "one") == 0
    assert call(*words, "--out", tmp_path / "two") == 0
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "two")
    assert Image.open(tmp_path / "one" / "overview.png").width > 500
    assert "16 simulated parts" in capsys.readouterr().out
    assert call("recordings", "show", tmp_path / "one") == 0
