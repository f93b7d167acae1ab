"""Kept pictures: what is worth keeping, what leaves first, and what a kill or a full disk does."""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_device_agents_outbox_faults import fill_disk, small_disk  # noqa: F401 - a fixture
from test_device_agents_outbox_writer import STATION

from device_agents.outbox.kept import WEIGHTS, KeptPictures, KeptReader, places_in, why_keep
from device_agents.outbox.kept_part import FILES, KeptPart, files_of
from device_agents.station import Pictures
from edge.messages import Inspection, Timings
from edge.sample import Channel, Window

EPOCH = "8a0f4a0e-0000-4000-8000-000000000000"
CHANNELS = (Channel("drive_end", "g", 1600.0), Channel("load", "N", 1600.0))
LIMITS = Pictures(max_bytes=2 << 20)


def inspection(number=1, decision="pass", score=0.1, **changed) -> Inspection:
    made = Inspection(
        inspection_id=f"{EPOCH}-{number}",
        station=STATION,
        station_epoch=EPOCH,
        sequence=number,
        sample_id=f"p{number}",
        part_id=f"part{number}",
        captured_at="2026-11-21T08:30:00.000000Z",
        inspected_at="2026-11-21T08:30:00.100000Z",
        decision=decision,
        label={"pass": "good", "fail": "scratch", "invalid": ""}[decision],
        anomaly_score=None if decision == "invalid" else score,
        threshold=0.5,
        class_scores={"good": 1 - score, "scratch": score},
        modalities=("image", "sensor"),
        reason="",
        bundle_digest="d" * 64,
        engine="test",
        timings=Timings(1, 2, 3),
    )
    return msgspec.structs.replace(made, **changed)


def part(number=1, why=("near",), size=(24, 32), **changed) -> KeptPart:
    draw = np.random.default_rng(number)
    pixels = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
    window = Window(draw.normal(size=(2, 64)).astype(np.float32), CHANNELS, 123)
    return KeptPart(
        inspection(number, **changed), pixels, draw.random((8, 6), np.float32), window, why
    )


def kinds_in(folder: Path) -> Counter:
    return Counter(place.kind for place in places_in(folder))


def test_a_part_comes_back_in_another_process_as_it_was(tmp_path):
    outbox = tmp_path / "outbox.sqlite"
    gradient = np.stack(np.meshgrid(np.arange(64), np.arange(48)), axis=2).astype(np.uint8)
    pixels = np.concatenate([gradient * 3, gradient[:, :, :1]], axis=2)
    given_part = msgspec_free(part(7, ("near", "drift")), pixels=pixels)
    assert KeptPictures.open(outbox, LIMITS).keep(given_part)
    found = KeptReader(outbox).read(f"{EPOCH}-7")
    assert found is not None
    assert found.inspection == given_part.inspection
    assert found.why == ("near", "drift")
    assert np.abs(found.pixels.astype(int) - pixels).mean() < 3, "JPEG, and the colours in order"
    assert np.abs(found.heat_map - given_part.heat_map).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(found.window.values, given_part.window.values)
    assert (found.window.channels, found.window.captured_at_ns) == (CHANNELS, 123)
    assert KeptReader(outbox).read(f"{EPOCH}-8") is None


def msgspec_free(kept: KeptPart, **changed) -> KeptPart:
    """Replace fields of a plain dataclass."""
    return KeptPart(**{**kept.__dict__, **changed})


def test_part_without_frame_heat_map_or_window_is_kept_too(tmp_path):
    outbox = tmp_path / "outbox.sqlite"
    bare = KeptPart(inspection(3, "invalid"), None, None, None, ("invalid",))
    assert KeptPictures.open(outbox, LIMITS).keep(bare)
    assert KeptReader(outbox).read(f"{EPOCH}-3") == bare


@pytest.mark.parametrize(
    ("made", "draw", "why"),
    [
        (inspection(), 0.5, ()),
        (inspection(), 0.001, ("pass",)),
        (inspection(score=0.46), 0.5, ("near",)),
        (inspection(decision="fail", score=0.54), 0.5, ("near", "fail")),
        (inspection(decision="fail", score=0.9), 0.5, ("fail",)),
        (inspection(decision="invalid"), 0.5, ("invalid",)),
        (inspection(score=0.1, class_scores={"good": 0.2, "scratch": 0.8}), 0.5, ("disagree",)),
        (
            inspection(decision="fail", score=0.9, class_scores={"good": 0.8, "scratch": 0.2}),
            0.5,
            ("disagree", "fail"),
        ),
        (inspection(decision="fail", score=0.9, label="anomaly", class_scores={}), 0.5, ("fail",)),
        (inspection(drift=("brightness",)), 0.5, ()),
        (inspection(drift=("brightness",)), 0.05, ("drift",)),
        (inspection(decision="fail", score=0.9, drift=("x",)), 0.5, ("drift", "fail")),
    ],
)
def test_what_is_worth_keeping(made, draw, why):
    assert why_keep(made, Pictures(share_of_passes=0.01), draw) == why


def test_quota_of_nothing_keeps_nothing(tmp_path):
    none = Pictures(max_bytes=0)
    assert why_keep(inspection(decision="fail", score=0.9), none, 0.0) == ()
    kept = KeptPictures.open(tmp_path / "outbox.sqlite", none)
    assert not kept.keep(part())
    assert kept.counters == {"pictures_no_room": 1}


def bytes_under(folder: Path) -> int:
    return sum(entry.stat().st_blocks * 512 for entry in folder.rglob("*"))


def test_quota_holds_and_the_oldest_leave_first(tmp_path):
    kept = KeptPictures.open(tmp_path / "outbox.sqlite", LIMITS)
    for number in range(1, 151):
        assert kept.keep(part(number))
        assert kept.size <= LIMITS.max_bytes
    here = [place.number for place in places_in(kept.folder)]
    assert here == list(range(151 - len(here), 151))
    assert 20 < len(here) < 150
    assert kept.counters == {"pictures_kept": 150, "pictures_evicted": 150 - len(here)}
    assert bytes_under(kept.folder) <= LIMITS.max_bytes


def test_a_flood_of_fails_pushes_out_itself_and_the_informative_stay(tmp_path):
    kept = KeptPictures.open(tmp_path / "outbox.sqlite", LIMITS)
    for number in range(10):
        kept.keep(part(number, ("near",)))
        kept.keep(part(100 + number, ("disagree", "fail")))
        kept.keep(part(200 + number, ("pass",)))
    for number in range(300, 500):
        assert kept.keep(part(number, ("fail",)))
    kinds = kinds_in(kept.folder)
    assert (kinds["near"], kinds["disagree"]) == (10, 10)
    assert kinds["pass"] <= 3, "plain passes made way first"
    assert kinds["fail"] > 30


def test_a_pass_does_not_push_out_what_is_worth_more(tmp_path):
    small = Pictures(max_bytes=700_000)
    kept = KeptPictures.open(tmp_path / "outbox.sqlite", small)
    for number in range(40):
        kept.keep(part(number, ("near",)))
    before = kinds_in(kept.folder)
    assert not kept.keep(part(99, ("pass",)))
    assert kinds_in(kept.folder) == before
    assert kept.counters["pictures_no_room"] == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(list(WEIGHTS)), max_size=60), st.integers(50_000, 600_000))
def test_any_order_of_reasons_stays_within_any_quota(tmp_path_factory, reasons, quota):
    outbox = tmp_path_factory.mktemp("quota") / "outbox.sqlite"
    kept = KeptPictures.open(outbox, Pictures(max_bytes=quota))
    stored = [kept.keep(part(n, (why,), (8, 8))) for n, why in enumerate(reasons)]
    here = places_in(kept.folder)
    assert kept.size <= quota
    assert len(here) == stored.count(True) - kept.counters.get("pictures_evicted", 0)
    again = KeptPictures.open(outbox, Pictures(max_bytes=quota))
    assert again.size == kept.size, "the names say it all"


def test_restart_goes_on_numbering_and_a_lowered_quota_is_kept_to(tmp_path):
    outbox = tmp_path / "outbox.sqlite"
    first = KeptPictures.open(outbox, LIMITS)
    for number in range(1, 21):
        first.keep(part(number))
    second = KeptPictures.open(outbox, Pictures(max_bytes=300_000))
    assert 0 < second.size <= 300_000
    assert second.keep(part(21))
    assert [place.number for place in places_in(second.folder)][-1] == 21


@pytest.mark.parametrize(
    "hostile", ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", "x\0y", "a" * 300, "\n"]
)
def test_hostile_ids_are_refused(tmp_path, hostile):
    outbox = tmp_path / "outbox.sqlite"
    kept = KeptPictures.open(outbox, LIMITS)
    assert not kept.keep(part(inspection_id=hostile))
    assert kept.counters == {"pictures_lost": 1}
    assert KeptReader(outbox).read(hostile) is None
    assert not kept.folder.exists()


def test_foreign_files_are_neither_counted_nor_deleted(tmp_path):
    outbox = tmp_path / "outbox.sqlite"
    folder = KeptPictures.open(outbox, LIMITS).folder
    folder.mkdir()
    ours = folder / f"near.000000000001.100.{EPOCH}-1"
    for name in ("notes.txt", "near.1.2.3", "other.000000000001.100.x", ".kept-newer", "near"):
        (folder / name).write_text("mine")
    (folder / "family").mkdir()
    (folder / "family" / "photo.jpg").write_bytes(b"x" * 100_000)
    ours.symlink_to(tmp_path)
    kept = KeptPictures.open(outbox, Pictures(max_bytes=200_000))
    assert kept.size == 0
    for number in range(20):
        kept.keep(part(number))
    victim = places_in(folder)[0].path
    (victim / "remark.txt").write_text("mine too")
    for number in range(20, 60):
        kept.keep(part(number))
    assert (folder / "family" / "photo.jpg").stat().st_size == 100_000
    assert (folder / "notes.txt").read_text() == "mine"
    assert ours.is_symlink()
    assert [found.read_text() for found in folder.rglob("remark.txt")] == ["mine too"]
    assert len(places_in(folder)) <= 8


@pytest.mark.parametrize("name", FILES)
def test_part_with_a_file_cut_short_or_replaced_by_a_link_is_none(tmp_path, name):
    outbox = tmp_path / "outbox.sqlite"
    kept = KeptPictures.open(outbox, LIMITS)
    kept.keep(part(1))
    file = places_in(kept.folder)[0].path / name
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert KeptReader(outbox).read(f"{EPOCH}-1") is None
    file.write_bytes(bytes(len(content)))
    assert KeptReader(outbox).read(f"{EPOCH}-1") is None
    (tmp_path / "elsewhere").write_bytes(content)
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert KeptReader(outbox).read(f"{EPOCH}-1") is None


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(FILES),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=9),
)
def test_part_with_any_bytes_changed_is_a_part_or_none(tmp_path_factory, name, changes):
    outbox = tmp_path_factory.mktemp("bytes") / "outbox.sqlite"
    kept = KeptPictures.open(outbox, LIMITS)
    kept.keep(part(1))
    file = places_in(kept.folder)[0].path / name
    content = bytearray(file.read_bytes())
    for place, bits in changes:
        content[min(len(content) - 1, int(place * len(content)))] ^= bits
    file.write_bytes(content)
    found = KeptReader(outbox).read(f"{EPOCH}-1")
    assert found is None or found.inspection.inspection_id == f"{EPOCH}-1"


def test_full_disk_loses_pictures_by_name_and_leaves_no_half_ones(small_disk):  # noqa: F811
    outbox = small_disk / "outbox.sqlite"
    kept = KeptPictures.open(outbox, Pictures(max_bytes=1 << 30))
    for number in range(1, 11):
        assert kept.keep(part(number, size=(200, 200)))
    ballast = fill_disk(small_disk)
    stored = [kept.keep(part(number, size=(200, 200))) for number in range(11, 41)]
    names = ("pictures_kept", "pictures_lost", "pictures_no_room")
    assert sum(kept.counters.get(name, 0) for name in names) == 40
    assert len(places_in(kept.folder)) <= 10, "pictures do not grow into what records need"
    for place in places_in(kept.folder):
        assert KeptReader(outbox).read(place.inspection_id) is not None
    assert not (kept.folder / ".kept-new").exists()
    ballast.unlink()
    assert kept.keep(part(50, size=(200, 200))), stored


def test_folder_that_cannot_be_made_loses_pictures_by_name(tmp_path):
    (tmp_path / "outbox.sqlite.pictures").write_text("a file")
    kept = KeptPictures.open(tmp_path / "outbox.sqlite", LIMITS)
    assert not kept.keep(part())
    assert kept.counters == {"pictures_lost": 1}
    missing = KeptPictures.open(tmp_path / "none" / "outbox.sqlite", LIMITS)
    assert isinstance(missing.keep(part()), bool)


def test_arrays_that_are_no_picture_are_lost_by_name(tmp_path):
    kept = KeptPictures.open(tmp_path / "outbox.sqlite", LIMITS)
    for pixels in (np.zeros((0, 0, 3), np.uint8), np.zeros((3, 4, 7), np.uint8)):
        assert not kept.keep(msgspec_free(part(), pixels=pixels))
    wild = np.array([[np.nan, np.inf], [-np.inf, 0.5]], np.float32)
    assert kept.keep(msgspec_free(part(), heat_map=wild))
    assert kept.counters == {"pictures_lost": 2, "pictures_kept": 1}


def test_killed_in_the_middle_no_half_part_counts_and_the_next_run_cleans_up(tmp_path):
    outbox = tmp_path / "outbox.sqlite"
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "import test_device_agents_outbox_kept as t\n"
        "kept = t.KeptPictures.open(Path(sys.argv[1]), t.Pictures(max_bytes=400_000))\n"
        "number = int(sys.argv[3])\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    number += 1; kept.keep(t.part(number, (('near', 'fail')[number % 2],)))\n"
    )
    draw = random.Random(5)
    for turn in range(4):
        folder = str(Path(__file__).parent)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(outbox), folder, str(turn * 10_000)],
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05 + draw.random() * 0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for place in places_in(tmp_path / "outbox.sqlite.pictures"):
            assert KeptReader(outbox).read(place.inspection_id) is not None
    kept = KeptPictures.open(outbox, Pictures(max_bytes=400_000))
    assert kept.size > 0
    names = {entry.name for entry in kept.folder.iterdir()}
    assert names == {place.path.name for place in places_in(kept.folder)}
    assert bytes_under(kept.folder) <= 400_000


def test_image_is_jpeg_that_any_viewer_opens():
    files = files_of(part(1))
    assert files["image.jpg"].startswith(b"\xff\xd8\xff")
    assert files["heat_map.png"].startswith(b"\x89PNG")
    assert set(files) == set(FILES)
