"""The outbox: durable, bounded, one writer; what it cannot keep is counted and shows as a gap."""

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agents.outbox.cursor import Cursor, cursor_path_of, read_cursor, write_cursor
from device_agents.outbox.reader import OutboxReader
from device_agents.outbox.writer import Outbox
from edge.errors import InputError, MachineError
from edge.messages import Inspection, Timings, decode
from edge.topics import StationId

STATION = StationId("north", "milling", "l1", "s1")


def opened(path: Path, *, max_rows: int = 1_000, max_bytes: int = 1 << 20) -> Outbox:
    return Outbox.open(path, max_rows=max_rows, max_bytes=max_bytes)


def inspection_for(outbox: Outbox, decision="pass", reason="") -> Inspection:
    return Inspection(
        inspection_id=f"{outbox.epoch}-{outbox.next_sequence}",
        station=STATION,
        station_epoch=outbox.epoch,
        sequence=outbox.next_sequence,
        sample_id="p1",
        part_id="part1",
        captured_at=None,
        inspected_at="2026-11-21T08:30:00.000000Z",
        decision=decision,
        label="",
        anomaly_score=0.5,
        threshold=0.5,
        class_scores={},
        modalities=("image",),
        reason=reason,
        bundle_digest="d" * 64,
        engine="test",
        timings=Timings(0, 0, 0),
    )


def fill(outbox: Outbox, decisions: str) -> None:
    """Append one record per letter: p(ass), f(ail), i(nvalid)."""
    names = {"p": "pass", "f": "fail", "i": "invalid"}
    for letter in decisions:
        assert outbox.append(inspection_for(outbox, names[letter]))


def kept(path: Path) -> list[int]:
    reader = OutboxReader.open(path)
    assert reader is not None
    records = reader.records_after(0, 10_000)
    reader.close()
    for sequence, payload in records:
        assert decode(payload, Inspection).sequence == sequence
    return [sequence for sequence, _ in records]


def test_restarted_inspector_continues_epoch_sequence_and_counters(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        epoch = outbox.epoch
        outbox.count("inspected", 3)
        fill(outbox, "pfp")
    with opened(path) as outbox:
        assert (outbox.epoch, outbox.next_sequence) == (epoch, 4)
        assert outbox.counters == {"inspected": 3}
        fill(outbox, "p")
    assert kept(path) == [1, 2, 3, 4]


def test_sequence_is_never_used_again_when_all_rows_are_gone(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "ppp")
        outbox.note_acknowledged(3)
        fill(outbox, "p")
        outbox.note_acknowledged(4)
        fill(outbox, "p")
        assert outbox.depth == 1
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM outbox")
    connection.commit()
    connection.close()
    with opened(path) as outbox:
        assert outbox.next_sequence == 6


def test_full_outbox_drops_the_oldest_pass_first_and_no_defect_before_the_last_pass(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path, max_rows=4) as outbox:
        fill(outbox, "fpfp")
        fill(outbox, "f")  # pushes out 2
        assert kept(path) == [1, 3, 4, 5]
        fill(outbox, "i")  # pushes out 4, the last pass
        assert kept(path) == [1, 3, 5, 6]
        # It has no pass to push out: is not kept itself, and is told apart from what is.
        assert not outbox.append(inspection_for(outbox, "pass"))
        assert outbox.fault == "", "nothing is wrong with the disk"
        assert kept(path) == [1, 3, 5, 6]
        assert outbox.counters == {"dropped_pass": 3}
        fill(outbox, "f")  # only now the oldest defect goes
        assert kept(path) == [3, 5, 6, 8]
        assert outbox.counters == {"dropped_pass": 3, "dropped_defect": 1}
    with opened(path, max_rows=4) as outbox:
        assert outbox.counters == {"dropped_pass": 3, "dropped_defect": 1}


def test_the_file_stays_within_its_bytes_whatever_the_mixture(tmp_path):
    path, most = tmp_path / "outbox.sqlite", 400_000
    draw = random.Random(4)
    with opened(path, max_bytes=most, max_rows=100_000) as outbox:
        for _ in range(40):
            group = []
            for sequence in range(outbox.next_sequence, outbox.next_sequence + 25):
                decision = "fail" if draw.random() < 0.3 else "pass"
                record = inspection_for(outbox, decision, reason="x" * draw.randrange(3_000))
                group.append(msgspec.structs.replace(record, sequence=sequence))
            first, stored = outbox.next_sequence, outbox.append_all(group)
            here = set(kept(path))
            assert stored == [number in here for number in range(first, first + 25)]
        outbox._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert path.stat().st_size <= most + 16 * 4096
        assert path.stat().st_size > most * 0.7, "and uses what it may"
        numbers = kept(path)
        dropped = outbox.counters["dropped_pass"] + outbox.counters.get("dropped_defect", 0)
        assert len(numbers) + dropped == 1_000
        outbox.append(inspection_for(outbox, "fail", reason="x" * 600_000))
        assert kept(path) == numbers, "what cannot fit pushes nothing out"


def test_lowered_limits_shrink_the_outbox_over_several_appends(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "p" * 230)
    with opened(path, max_rows=10) as outbox:
        fill(outbox, "p" * 6)
        assert len(kept(path)) == 10
        assert outbox.counters["dropped_pass"] == 226


def test_acknowledged_rows_leave_in_small_batches_and_are_no_drops(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path, max_rows=120) as outbox:
        fill(outbox, "p" * 120)
        outbox.note_acknowledged(120)
        fill(outbox, "p")
        assert outbox.depth == 71
        fill(outbox, "pp")
        assert outbox.depth == 3
        assert kept(path) == [121, 122, 123]
        assert outbox.counters == {}


def test_second_inspector_is_refused(tmp_path):
    with opened(tmp_path / "o.sqlite"), pytest.raises(MachineError, match="another inspector at"):
        opened(tmp_path / "o.sqlite")
    opened(tmp_path / "o.sqlite").close()


def test_full_disk_loses_the_record_by_name_and_the_loop_goes_on(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "ff")
        pages = outbox._db.execute("PRAGMA page_count").fetchone()[0]
        outbox._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLITE_FULL, as a full disk gives
        lost = sum(
            not outbox.append(inspection_for(outbox, "fail", reason="x" * 3_000)) for _ in range(3)
        )
        assert lost == 3
        assert outbox.counters["lost_disk"] == 3
        outbox._db.execute("PRAGMA max_page_count = 1000000")
        fill(outbox, "f")
    assert kept(path) == [1, 2, 6], "the gap shows what was lost"
    with opened(path) as outbox:
        assert (outbox.counters["lost_disk"], outbox.next_sequence) == (3, 7)


def test_write_error_of_the_file_system_is_survived(tmp_path):
    path = tmp_path / "outbox.sqlite"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as outbox:
        fill(outbox, "ff")
        written = path.with_name(path.name + "-wal").stat().st_size
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (written + 100, before[1]))
            assert not outbox.append(inspection_for(outbox, "fail"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert outbox.counters["lost_disk"] == 1
        fill(outbox, "f")
    assert kept(path) == [1, 2, 4]


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0" + b"\xff" * 4096])
def test_corrupt_outbox_is_set_aside_and_a_new_epoch_starts(tmp_path, caplog, content):
    path = tmp_path / "outbox.sqlite"
    opened(path).close()  # an earlier run: its lock file says that this was an outbox
    path.write_bytes(content)
    with opened(path) as outbox:
        assert outbox.next_sequence == 1
        fill(outbox, "p")
    assert "is corrupt" in caplog.text
    [aside] = tmp_path.glob("outbox.sqlite.corrupt-*")
    assert aside.read_bytes() == content
    assert kept(path) == [1]


@pytest.fixture(scope="module")
def sound_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "pfp" * 20)
    return path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=40),
    cut=st.floats(0.3, 1.0),
)
def test_outbox_with_any_bytes_changed_starts_or_says_why_not(
    sound_bytes, tmp_path_factory, places, cut
):
    path = tmp_path_factory.mktemp("bytes") / "outbox.sqlite"
    opened(path).close()  # leaves the lock file that stands beside every outbox
    content = bytearray(sound_bytes)[: int(len(sound_bytes) * cut)]
    for place, bits in places:
        content[min(len(content) - 1, int(place * len(content)))] ^= bits
    path.write_bytes(content)
    said = ""
    try:
        with opened(path) as outbox:
            outbox.append(inspection_for(outbox, "fail"))
            outbox.append(inspection_for(outbox, "fail"))
    except InputError as refused:  # its identity was hit: nothing is deleted on a guess
        said = str(refused)
    if said:
        assert "SQLite file of something else" in said or "of schema" in said
        assert path.read_bytes() == content


def test_outbox_that_breaks_while_in_use_is_replaced_and_the_reader_follows(tmp_path, caplog):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "p" * 120)
        first_epoch = outbox.epoch
        reader = OutboxReader.open(path)
        outbox._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * (path.stat().st_size - 4096))
        outbox._db.execute("PRAGMA cache_size = 0")
        stored = [outbox.append(inspection_for(outbox, "fail")) for _ in range(4)]
        assert stored.count(False) >= 1
        assert stored[-1], "the loop goes on in a new file"
        assert outbox.epoch != first_epoch
        assert outbox.counters["lost_disk"] == stored.count(False)
        assert not reader.is_current()
        reader.close()
        assert OutboxReader.open(path).epoch == outbox.epoch
    assert "corrupt" in caplog.text


@pytest.mark.parametrize("content", [b'station = { site = "north" }\n' * 9, b"x", b"SQLite format"])
def test_somebody_elses_file_is_refused_untouched_again_and_again(tmp_path, content):
    path = tmp_path / "st.toml"
    path.write_bytes(content)
    for _ in range(2):  # the first refusal must leave no sign that would let the second pass
        with pytest.raises(InputError, match="an outbox or a new path, found another file"):
            opened(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_outbox_path_that_is_a_folder_or_a_pipe_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="a new path, found a folder"):
        opened(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="a new path, found no regular file"):
        opened(tmp_path / "pipe")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "pipe"]


def test_empty_file_becomes_an_outbox(tmp_path):
    path = tmp_path / "outbox.sqlite"
    path.touch()
    with opened(path) as outbox:
        fill(outbox, "p")
    assert kept(path) == [1]


def test_somebody_elses_database_is_refused_untouched(tmp_path):
    path = tmp_path / "outbox.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE precious (x)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="SQLite file of something else"):
        opened(path)
    assert path.read_bytes() == before


def test_outbox_of_another_schema_is_refused_untouched(tmp_path):
    path = tmp_path / "outbox.sqlite"
    opened(path).close()
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 3")
    newer.close()
    with pytest.raises(InputError, match="schema 2, or nothing, found an outbox of schema 3"):
        opened(path)
    assert not list(tmp_path.glob("*.corrupt-*"))


def test_folder_that_cannot_be_written_is_a_machine_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="an outbox that can be written"):
        opened(tmp_path / "file" / "outbox.sqlite")


def test_killed_inspector_leaves_every_record_that_it_counted_done(tmp_path):
    path = tmp_path / "outbox.sqlite"
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "import test_device_agents_outbox_writer as t\n"
        "outbox = t.opened(Path(sys.argv[1]))\n"
        "while True:\n"
        "    t.fill(outbox, 'p'); print(outbox.next_sequence - 1, flush=True)\n"
    )
    folder = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), folder], stdout=subprocess.PIPE
    )
    done = 0
    while done < 100:
        done = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    done = [done, *map(int, process.stdout.read().split())][-1]
    process.wait()
    before = kept(path)  # read-only, before any writer recovers the file
    assert before[:done] == list(range(1, done + 1))
    with opened(path) as outbox:
        assert outbox.next_sequence == before[-1] + 1


def test_reader_waits_for_an_outbox_that_is_not_there(tmp_path):
    assert OutboxReader.open(tmp_path / "none.sqlite") is None
    (tmp_path / "bad.sqlite").write_bytes(b"no database")
    assert OutboxReader.open(tmp_path / "bad.sqlite") is None


def test_cursor_survives_and_anything_unreadable_counts_as_none(tmp_path):
    outbox = tmp_path / "outbox.sqlite"
    cursor = Cursor("epoch-1", 41, {"published": 41})
    write_cursor(outbox, cursor)
    assert read_cursor(outbox, "epoch-1") == cursor
    assert read_cursor(outbox, "epoch-2").acknowledged == 0
    for content in (
        b"",
        b"{}",
        b"[1]",
        b'{"station_epoch":"epoch-1","acknowledged":-5,"counters":{}}',
    ):
        cursor_path_of(outbox).write_bytes(content)
        assert read_cursor(outbox, "epoch-1") == Cursor("epoch-1", 0, {})


def test_outbox_that_fell_behind_its_cursor_uses_no_number_below_it(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "pp")
        write_cursor(path, Cursor(outbox.epoch, 50, {}))
    with opened(path) as outbox:
        assert outbox.next_sequence == 51


def test_number_of_a_pass_that_found_no_room_goes_to_no_other_part(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path, max_rows=3) as outbox:
        fill(outbox, "fff")
        dropped = inspection_for(outbox, "pass")
        assert not outbox.append(dropped)
    with opened(path, max_rows=3) as outbox:
        assert outbox.next_sequence == 5
        later = inspection_for(outbox, "fail")
        assert later.inspection_id != dropped.inspection_id
        assert outbox.append(later)
        assert outbox.counters == {"dropped_pass": 1, "dropped_defect": 1}
    assert kept(path) == [2, 3, 5], "the gap shows after the restart, too"


def test_record_pushed_out_by_its_own_group_is_not_said_to_be_kept(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path, max_rows=1) as outbox:
        group = [inspection_for(outbox, decision) for decision in ("pass", "fail", "pass")]
        group = [msgspec.structs.replace(g, sequence=n) for n, g in enumerate(group, 1)]
        assert outbox.append_all(group) == [False, True, False]
    assert kept(path) == [2]


def test_cursor_beyond_the_outbox_deletes_nothing(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "fff")
        outbox.note_acknowledged(10**6)
        fill(outbox, "f" * 20)
        assert kept(path) == list(range(4, 24)), "only what was there when it was told"


def test_digit_of_the_cursor_that_changed_on_the_disk_makes_it_none(tmp_path):
    path = tmp_path / "outbox.sqlite"
    write_cursor(path, Cursor("epoch-1", 3, {"published": 3}))
    content = cursor_path_of(path).read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        cursor_path_of(path).write_bytes(changed)
        assert read_cursor(path, "epoch-1") == Cursor("epoch-1", 0, {}), changed


def test_cursor_of_an_earlier_version_is_read_but_not_believed_beyond_the_outbox(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "fff")
        epoch = outbox.epoch
    old = b'{"station_epoch":"%s","acknowledged":%d,"counters":{}}'
    cursor_path_of(path).write_bytes(old % (epoch.encode(), 2))
    reader = OutboxReader.open(path)
    assert read_cursor(path, epoch, reader.last_sequence()).acknowledged == 2
    cursor_path_of(path).write_bytes(old % (epoch.encode(), 2_000))
    assert read_cursor(path, epoch, reader.last_sequence()).acknowledged == 0, "all is sent again"
    reader.close()
    with opened(path) as outbox:
        assert outbox.next_sequence == 4
        fill(outbox, "f")
    assert kept(path) == [1, 2, 3, 4]


def test_number_used_behind_a_cursor_is_not_used_again_when_the_cursor_is_gone(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "pp")
        write_cursor(path, Cursor(outbox.epoch, 50, {}))
    outbox = opened(path)  # and is killed before its first record
    cursor_path_of(path).unlink()
    outbox._db.close()
    os.close(outbox._lock)
    with opened(path) as outbox:
        assert outbox.next_sequence == 51
