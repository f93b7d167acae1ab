"""The outbox on bad days: a full disk, a file deleted or damaged under it, a reader that hangs."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_device_agents_outbox_writer import fill, inspection_for, kept, opened

import device_agents.outbox.file
import device_agents.outbox.writer
from device_agents.outbox.cursor import Cursor, cursor_path_of, read_cursor, write_cursor
from device_agents.outbox.reader import OutboxReader
from device_agents.outbox.writer import Outbox
from edge.errors import EdgeError


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 12 MiB, to fill up and to free again."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"A FULL DISK IS NOT TESTED HERE: no right to mount a tmpfs ({mounted.stderr})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def group_of(outbox: Outbox, decisions: str, reason: str = "") -> list:
    """Make one record per letter, numbered one after the other."""
    names = {"p": "pass", "f": "fail", "i": "invalid"}
    return [
        msgspec.structs.replace(inspection_for(outbox, names[letter], reason), sequence=sequence)
        for sequence, letter in enumerate(decisions, outbox.next_sequence)
    ]


def fill_disk(folder: Path) -> Path:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def test_a_group_is_one_commit_and_all_of_it_is_there(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        statements = []
        outbox._db.set_trace_callback(statements.append)
        assert outbox.append_all(group_of(outbox, "pfpip")) == [True] * 5
        assert statements.count("COMMIT") == 1
        assert outbox.append_all([]) == []
        assert kept(path) == [1, 2, 3, 4, 5]
        assert outbox.next_sequence == 6


def oracle(decisions: str, rows: int) -> tuple[list[int], int]:
    """Say what the drop rule leaves of these records, the plain way."""
    here: list[tuple[int, str]] = []
    for number, letter in enumerate(decisions, start=1):
        if len(here) >= rows:
            passes = [entry for entry in here if entry[1] == "p"]
            if not passes and letter == "p":
                continue
            here.remove(passes[0] if passes else here[0])
        here.append((number, letter))
    return [number for number, _ in here], len(decisions) - len(here)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("pppffi", min_size=1, max_size=9), max_size=12), st.integers(1, 12))
def test_groups_drop_by_the_same_rule_as_single_records(tmp_path_factory, groups, rows):
    path = tmp_path_factory.mktemp("rule") / "outbox.sqlite"
    with opened(path, max_rows=rows) as outbox:
        for decisions in groups:
            outbox.append_all(group_of(outbox, decisions))
        expected, dropped = oracle("".join(groups), rows)
        assert kept(path) == expected
        assert sum(outbox.counters.values()) == dropped


def test_full_disk_keeps_defects_in_the_place_of_passes_and_recovers_when_freed(small_disk, caplog):
    path = small_disk / "outbox.sqlite"
    with opened(path, max_bytes=1 << 30) as outbox:
        fill(outbox, "p" * 300)
        outbox._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        ballast = fill_disk(small_disk)
        stored = [outbox.append(inspection_for(outbox, "fail")) for _ in range(40)]
        assert all(stored), "the journal and the pages of dropped passes are there already"
        assert outbox.counters["dropped_pass"] >= 10
        assert "dropped_defect" not in outbox.counters
        first_fail = 301
        assert kept(path)[-40:] == list(range(first_fail, first_fail + 40))
        ballast.unlink()
        fill(outbox, "pp")
        assert kept(path)[-2:] == [341, 342]
        assert outbox.fault == ""


def test_disk_full_to_the_last_byte_loses_records_by_name_until_it_is_freed(small_disk):
    path = small_disk / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "f" * 5)
        ballast = fill_disk(small_disk)
        stored = []
        for _ in range(60):
            stored += outbox.append_all(group_of(outbox, "ffff", reason="x" * 2_000))
        assert False in stored
        assert outbox.counters["lost_disk"] == stored.count(False)
        assert "full" in outbox.fault
        ballast.unlink()
        fill(outbox, "f")
        assert outbox.fault == ""
        epoch, lost, last = outbox.epoch, stored.count(False), outbox.next_sequence
    numbers = [*range(1, 6), *(6 + place for place, is_kept in enumerate(stored) if is_kept), 246]
    assert kept(path) == numbers, "what was said to be kept, and nothing else"
    with opened(path) as outbox:
        assert (outbox.epoch, outbox.next_sequence) == (epoch, last)
        assert outbox.counters["lost_disk"] == lost


@pytest.fixture
def failing_disk(tmp_path):
    """A real ext4 that a test can make fail, as it does by itself when its disk breaks."""
    image, folder = tmp_path / "image", tmp_path / "ext4"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    for command in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", image, folder]):
        ran = subprocess.run(list(map(str, command)), capture_output=True)
        if ran.returncode:
            pytest.skip(f"A FAILING DISK IS NOT TESTED HERE: {command[0]}: {ran.stderr}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_file_system_that_turns_read_only_loses_by_name_and_keeps_what_it_had(failing_disk):
    path = failing_disk / "outbox.sqlite"
    outbox = opened(path)
    fill(outbox, "pfp" * 10)
    aborted = subprocess.run(
        ["mount", "-o", "remount,abort", str(failing_disk)], capture_output=True
    )
    if aborted.returncode:
        outbox.close()
        pytest.skip(f"A READ-ONLY DISK IS NOT TESTED HERE: {aborted.stderr}")
    assert outbox.append_all(group_of(outbox, "ffff")) == [False] * 4
    assert not outbox.append(inspection_for(outbox, "fail"))
    assert outbox.counters["lost_disk"] == 5
    assert outbox.fault
    reader = OutboxReader.open(path)
    assert reader is None or len(reader.records_after(0, 100)) == 30
    outbox.close()


def test_disk_that_fails_long_enough_is_given_a_new_file(tmp_path, monkeypatch):
    monkeypatch.setattr(device_agents.outbox.writer, "_GIVE_UP_AFTER_S", -1.0)
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "ff")
        first = outbox.epoch
        with monkeypatch.context() as broken:  # one bad block answers with SQLITE_IOERR each time
            error = sqlite3.OperationalError("disk I/O error")
            broken.setattr(outbox, "_try", lambda _: error)
            assert not outbox.append(inspection_for(outbox, "fail"))
        assert outbox.epoch != first
        fill(outbox, "f")
        assert outbox.counters == {"lost_disk": 1, "lost_outbox": 2, "outbox_set_aside": 1}


def test_file_that_breaks_within_a_group_takes_none_of_it_into_the_next_epoch(
    tmp_path, monkeypatch
):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "f")
        answers = [sqlite3.OperationalError("database or disk is full")]
        answers += [sqlite3.DatabaseError("database disk image is malformed")]
        with monkeypatch.context() as broken:
            broken.setattr(outbox, "_try", lambda _: answers.pop(0))
            assert outbox.append_all(group_of(outbox, "fff")) == [False] * 3
        assert outbox.counters["lost_disk"] == 3
        fill(outbox, "f")
    assert kept(path) == [1]


def test_no_room_to_make_an_outbox_is_an_error_in_words(small_disk):
    fill_disk(small_disk)
    with pytest.raises(EdgeError, match="the room on its disk"):
        opened(small_disk / "outbox.sqlite")


def test_file_deleted_under_the_outbox_is_noticed_and_what_waited_is_counted(tmp_path, caplog):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "pfp")
        first, reader = outbox.epoch, OutboxReader.open(path)
        outbox.note_acknowledged(1)
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink()
        assert not outbox.append(inspection_for(outbox, "fail")), "not into a file nobody can find"
        assert outbox.counters == {"lost_disk": 1, "lost_outbox": 2, "outbox_set_aside": 1}
        assert outbox.epoch != first
        fill(outbox, "ff")
        assert not reader.is_current()
        reader.close()
    assert kept(path) == [1, 2]
    assert "deleted" in caplog.text


def test_journal_deleted_under_the_outbox_costs_no_record(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "pfp")
        epoch = outbox.epoch
        Path(f"{path}-wal").unlink()
        fill(outbox, "f")
        assert outbox.epoch == epoch
        fill(outbox, "p")
    assert kept(path) == [1, 2, 3, 4, 5]


def test_another_file_put_in_its_place_is_left_alone_and_the_loss_goes_on_being_counted(tmp_path):
    path = tmp_path / "outbox.sqlite"
    other = tmp_path / "other.sqlite"
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE precious (x)")
    database.commit()
    database.close()
    content = other.read_bytes()
    with opened(path) as outbox:
        fill(outbox, "ff")
        other.replace(path)
        for _ in range(3):
            assert not outbox.append(inspection_for(outbox, "fail"))
        assert outbox.counters == {"lost_disk": 3, "lost_outbox": 2, "outbox_set_aside": 1}
        assert path.read_bytes() == content
        path.unlink()
        assert not outbox.append(inspection_for(outbox, "fail"))
        fill(outbox, "f")
        assert outbox.counters["lost_disk"] == 4
    assert kept(path) == [1]


def test_older_copy_put_back_while_it_runs_uses_no_number_twice(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "pp")
        outbox._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(path, tmp_path / "copy")
        fill(outbox, "p" * 10)
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink()
        (tmp_path / "copy").replace(path)
        assert not outbox.append(inspection_for(outbox, "fail"))
        fill(outbox, "f")
        assert kept(path) == [1, 2, 14]


def test_file_that_is_somebody_elses_to_write_is_an_error_in_words():
    if os.geteuid() != 0:
        pytest.skip("A LACKING RIGHT IS NOT TESTED HERE: it takes root to step down from")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outbox.sqlite"
        opened(path).close()
        Path(folder).chmod(0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(EdgeError, match=r"Permission denied|unable to open|readonly"):
                opened(path)
        finally:
            os.seteuid(0)
        opened(path).close()


def test_reader_that_hangs_bounds_the_journal_and_the_loss_has_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(device_agents.outbox.writer, "WAL_LIMIT_BYTES", 1 << 20)
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "f")
        hanging = sqlite3.connect(path, isolation_level=None)
        hanging.execute("BEGIN")
        hanging.execute("SELECT count(*) FROM outbox").fetchone()
        stored = [outbox.append(inspection_for(outbox, "fail")) for _ in range(400)]
        assert False in stored
        assert Path(f"{path}-wal").stat().st_size < (1 << 20) + 100_000
        assert "a reader hangs" in outbox.fault
        assert outbox.counters["lost_disk"] == stored.count(False)
        hanging.execute("COMMIT")
        fill(outbox, "f")
        assert outbox.fault == ""
        hanging.close()
    assert len(kept(path)) == 2 + stored.count(True)


def test_rest_moves_the_journal_so_that_it_stays_small(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path, max_rows=10_000, max_bytes=1 << 30) as outbox:
        for _ in range(350):
            fill(outbox, "p")
            outbox.rest()
        assert Path(f"{path}-wal").stat().st_size < 3 << 20


def test_backlog_that_was_sent_gives_its_space_back(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path, max_rows=100_000, max_bytes=1 << 30) as outbox:
        for _ in range(12):
            outbox.append_all(group_of(outbox, "p" * 1_000))
        outbox._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        full = path.stat().st_size
        outbox.note_acknowledged(12_000)
        for _ in range(330):
            fill(outbox, "p")
            outbox.note_acknowledged(outbox.next_sequence - 1)
        outbox._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        assert outbox.depth == 1
        assert path.stat().st_size < full * 0.8


def test_order_is_by_sequence_whatever_the_clocks_say(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        for moment in ("2026-11-21T08:30:00Z", "1970-01-01T00:00:04Z", "2038-01-19T03:14:08Z"):
            record = msgspec.structs.replace(inspection_for(outbox), inspected_at=moment)
            assert outbox.append(record)
    assert kept(path) == [1, 2, 3]


def test_only_the_newest_corrupt_files_are_kept(tmp_path):
    path = tmp_path / "outbox.sqlite"
    for number in range(5):
        opened(path).close()
        path.write_bytes(b"broken %d" % number)
    with opened(path) as outbox:
        assert outbox.counters == {"outbox_set_aside": 5}, "each epoch tells of those before it"
    asides = {entry.name: entry.read_bytes() for entry in tmp_path.glob("*.corrupt-*")}
    assert asides == {f"outbox.sqlite.corrupt-{n + 1}": b"broken %d" % n for n in (3, 4)}


def test_outbox_of_schema_1_is_taken_over_with_what_waits_in_it(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "pf")
        epoch = outbox.epoch
    old = sqlite3.connect(path)
    old.executescript(
        "ALTER TABLE outbox DROP COLUMN crc; DELETE FROM counters WHERE name GLOB '_*';"
        "PRAGMA user_version = 1;"
    )
    old.close()
    assert OutboxReader.open(path) is None, "not before the inspector brought it up to date"
    with opened(path) as outbox:
        assert (outbox.epoch, outbox.next_sequence, outbox.depth) == (epoch, 3, 2)
        fill(outbox, "p")
    assert kept(path) == [1, 2, 3]


def test_record_whose_bytes_changed_on_the_disk_is_left_out_and_counted(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "ppppp")
    content = path.read_bytes()
    place = content.index(b'-3",') + 40
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    reader = OutboxReader.open(path)
    assert [number for number, _ in reader.records_after(0, 10)] == [1, 2, 4, 5]
    assert [number for number, _ in reader.records_after(2, 1)] == [4]
    assert reader.damaged == 1
    reader.close()


def test_reader_gets_past_a_damaged_page_to_the_records_behind_it(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "f" * 200)
    content = bytearray(path.read_bytes())
    page = content.index(b'-100",') // 4096 * 4096
    content[page : page + 200] = b"\xa5" * 200
    path.write_bytes(content)
    reader = OutboxReader.open(path)
    numbers = [number for number, _ in reader.records_after(0, 1_000)]
    while more := reader.records_after(numbers[-1], 1_000):
        numbers += [number for number, _ in more]
    assert numbers == sorted(numbers)
    assert 100 not in numbers
    assert {1, 90, 110, 200} <= set(numbers)
    assert reader.damaged == 200 - len(numbers)
    reader.close()


@pytest.fixture(scope="module")
def live_files(tmp_path_factory):
    """The three files of an outbox and its cursor as a kill leaves them, and what was counted."""
    path = tmp_path_factory.mktemp("live") / "outbox.sqlite"
    outbox = opened(path, max_rows=50)
    fill(outbox, "pfp" * 15)
    outbox._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
    fill(outbox, "pfi" * 10)
    write_cursor(path, Cursor(outbox.epoch, 30, {"published": 30}))
    suffixes = ("", "-wal", "-shm", ".cursor")
    files = {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in suffixes}
    found = outbox.epoch, outbox.next_sequence, kept(path)
    outbox.close()
    return Live(files, *found)


class Live:
    """Not a tuple: hypothesis would write all its bytes into every message."""

    def __init__(self, files, epoch, next_sequence, numbers):
        self.files, self.epoch = files, epoch
        self.next_sequence, self.numbers = next_sequence, numbers


@settings(max_examples=80, deadline=None)
@example(which="", changes=[(0.0, 255)], cut=1.0)
@example(which="-wal", changes=[(0.0, 255)], cut=0.5)
@given(
    which=st.sampled_from(["", "-wal", "-shm", ".cursor"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=30),
    cut=st.one_of(st.just(1.0), st.floats(0.0, 1.0)),
)
def test_any_bytes_changed_in_any_of_the_files(live_files, tmp_path_factory, which, changes, cut):
    epoch, next_sequence, numbers = live_files.epoch, live_files.next_sequence, live_files.numbers
    folder = tmp_path_factory.mktemp("bytes")
    path = folder / "outbox.sqlite"
    (folder / "outbox.sqlite.lock").touch()
    for suffix, content in live_files.files.items():
        changed = bytearray(content)
        if suffix == which:
            changed = changed[: int(len(content) * cut)]
            for place, bits in changes if changed else ():
                changed[min(len(changed) - 1, int(place * len(changed)))] ^= bits
        Path(f"{path}{suffix}").write_bytes(changed)
    try:
        outbox = opened(path)
    except EdgeError:  # in words, and nothing was guessed
        return
    with outbox:
        assert uuid.UUID(outbox.epoch)
        start = outbox.next_sequence
        for _ in range(3):
            outbox.append(inspection_for(outbox, "fail"))
        outbox.note_acknowledged(read_cursor(path, outbox.epoch).acknowledged)
        outbox.append(inspection_for(outbox, "fail"))
        reader = OutboxReader.open(path)
        if reader is not None:
            with contextlib.suppress(sqlite3.Error):
                found = [number for number, _ in reader.records_after(0, 1_000)]
                assert found == sorted(set(found))
            reader.close()
    if outbox.epoch == epoch and which != "-wal":
        assert start >= min(next_sequence, numbers[-1] + 1), "no number is used twice"
    if outbox.epoch == epoch:
        assert start > 45, "what was in the file before the journal is not forgotten"


def test_hostile_cursor_is_no_cursor(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "pf")
        epoch = outbox.epoch
    for acknowledged in (-1, 2**60, 2**63 - 1, 2**70):
        cursor_path_of(path).write_bytes(
            b'{"station_epoch":"%s","acknowledged":%d,"counters":{}}'
            % (epoch.encode(), acknowledged)
        )
        assert read_cursor(path, epoch).acknowledged == 0
        with opened(path) as outbox:
            assert outbox.next_sequence == 3


@pytest.mark.parametrize("kind", ["folder", "loop"])
def test_cursor_that_is_no_file_counts_as_none(tmp_path, kind):
    path = tmp_path / "outbox.sqlite"
    place = cursor_path_of(path)
    place.mkdir() if kind == "folder" else place.symlink_to(place)
    assert read_cursor(path, "e") == Cursor("e", 0, {})
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the kind
        write_cursor(path, Cursor("e", 1, {})) if kind == "folder" else cursor_is_replaced(path)


def cursor_is_replaced(path):
    write_cursor(path, Cursor("e", 1, {}))
    assert read_cursor(path, "e").acknowledged == 1
    raise OSError


def test_group_that_was_killed_in_the_middle_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "outbox.sqlite"
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "import test_device_agents_outbox_faults as t\n"
        "outbox = t.opened(Path(sys.argv[1]), max_rows=100_000, max_bytes=1 << 30)\n"
        "while True:\n"
        "    assert all(outbox.append_all(t.group_of(outbox, 'pf' * 5)))\n"
        "    print(outbox.next_sequence - 1, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(Path(__file__).parent)], stdout=subprocess.PIPE
    )
    for _ in range(30):
        done = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    done = [done, *map(int, process.stdout.read().split())][-1]
    process.wait()
    numbers = kept(path)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= done
    assert len(numbers) % 10 == 0
