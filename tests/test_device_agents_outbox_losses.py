"""What the outbox lost is known after a restart: full disks, kills, files found corrupt."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import msgspec
import pytest
from test_device_agents_outbox_faults import fill_disk, group_of, small_disk  # noqa: F401 - fixture
from test_device_agents_outbox_writer import fill, inspection_for, kept, opened

from device_agents.inspector.counts import Counts
from device_agents.inspector.pulse import Pulse
from device_agents.inspector.recorder import Record, Recorder
from device_agents.outbox.cursor import Cursor, cursor_path_of, write_cursor
from device_agents.outbox.losses import LossesFile, Noted
from edge.errors import EdgeError


def lose_all(outbox, at_least=30) -> int:
    """Append until the full disk takes none any more; return how many were lost."""
    lost = in_a_row = 0
    for _ in range(2_000):
        is_kept = outbox.append(inspection_for(outbox, "fail", reason="x" * 500))
        lost, in_a_row = lost + (not is_kept), 0 if is_kept else in_a_row + 1
        if in_a_row >= at_least:
            return lost
    raise AssertionError("the disk was never full")


def killed_on_a_full_disk(path: Path) -> tuple[int, int]:
    """Fill a disk in a process of its own; return what it lost, and its last number."""
    code = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "import test_device_agents_outbox_losses as t\n"
        "path = Path(sys.argv[1]); outbox = t.opened(path, max_bytes=1 << 30)\n"
        "t.fill(outbox, 'f' * 20); t.fill_disk(path.parent)\n"
        "print(t.lose_all(outbox), outbox.next_sequence - 1, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(path), str(Path(__file__).parent)], capture_output=True
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    lost, last = map(int, ran.stdout.split())
    return lost, last


def test_killed_on_a_full_disk_the_losses_and_the_gap_are_there_after_the_restart(small_disk):  # noqa: F811
    path = small_disk / "outbox.sqlite"
    lost, last = killed_on_a_full_disk(path)
    (small_disk / "ballast").unlink()
    with opened(path) as outbox:
        assert outbox.next_sequence == last + 1
        assert outbox.counters["lost_disk"] == lost
        fill(outbox, "f")
    numbers = kept(path)
    assert numbers[-1] == last + 1
    assert last + 1 - len(numbers) == lost, "what a consumer counts as missing"


def test_losses_of_one_full_disk_after_the_other_add_up_over_restarts(small_disk):  # noqa: F811
    path, lost, last = small_disk / "outbox.sqlite", 0, 0
    for _ in range(2):
        with opened(path, max_bytes=1 << 30) as outbox:
            assert (outbox.next_sequence, outbox.counters.get("lost_disk", 0)) == (last + 1, lost)
            fill(outbox, "f" * 20)
            ballast = fill_disk(small_disk)
            before, newly = lost, lose_all(outbox)
            lost, last = before + newly, outbox.next_sequence - 1
            assert " records lost: database or disk is full" in outbox.fault, "Health's words"
        with pytest.raises(EdgeError, match="the room on its disk"):
            opened(path)
        ballast.unlink()
    with opened(path) as outbox:
        assert (outbox.next_sequence, outbox.counters["lost_disk"]) == (last + 1, lost)


def test_other_counters_of_a_full_disk_are_kept_as_well(small_disk):  # noqa: F811
    path = small_disk / "outbox.sqlite"
    with opened(path, max_bytes=1 << 30) as outbox:
        fill(outbox, "f" * 20)
        fill_disk(small_disk).stat()
        lose_all(outbox)
        outbox.count("lost_behind", 7)
    (small_disk / "ballast").unlink()
    with opened(path) as outbox:
        assert outbox.counters["lost_behind"] == 7


def test_no_record_that_is_kept_costs_a_note(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        before = outbox._losses.read(), outbox._losses._number
        fill(outbox, "pf" * 100)
        assert (outbox._losses.read(), outbox._losses._number) == before


def test_note_that_was_torn_leaves_the_one_before(tmp_path):
    path = tmp_path / "outbox.sqlite"
    losses = LossesFile(path)
    first, second = Noted("e", 5, {"lost_disk": 2}), Noted("e", 9, {"lost_disk": 6})
    assert losses.note(first)
    before = losses.path.read_bytes()
    assert losses.note(second)
    after = losses.path.read_bytes()
    assert LossesFile(path).read() == second
    changed = [place for place in range(len(after)) if before[place] != after[place]]
    for end in changed[::7]:
        losses.path.write_bytes(after[:end] + before[end:])
        assert LossesFile(path).read() in (first, second)
        if end < changed[-1]:
            assert LossesFile(path).read() == first
    losses.close()


@pytest.mark.parametrize("content", [b"", b"LOSS", b"\xff" * 8192, bytes(100_000)])
def test_losses_file_that_is_nonsense_counts_as_none_and_is_made_again(tmp_path, content):
    path = tmp_path / "outbox.sqlite"
    LossesFile(path).path.write_bytes(content)
    with opened(path) as outbox:
        assert (outbox.next_sequence, outbox.counters) == (1, {})
        epoch = outbox.epoch
    assert LossesFile(path).read() == Noted(epoch)


def test_losses_file_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path, caplog):
    path = tmp_path / "outbox.sqlite"
    LossesFile(path).path.mkdir()
    with opened(path) as outbox:
        fill(outbox, "pf")
    assert kept(path) == [1, 2]
    assert caplog.text.count("a restart forgets losses") == 1


def test_losses_file_deleted_while_in_use_is_made_again(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "pf")
        outbox._losses.path.unlink()
    assert LossesFile(path).read().last == 2


def corrupted(path: Path, first: int, last: int) -> None:
    content = bytearray(path.read_bytes())
    content[first:last] = b"\xff" * (last - first)
    path.write_bytes(content)


@pytest.mark.parametrize("is_readable", [True, False])
def test_outbox_found_corrupt_tells_what_it_had_to_send_and_what_was_lost_before(
    tmp_path, is_readable
):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "f" * 100)
        outbox.count("lost_disk", 7)
        outbox.count("inspected", 100)
        write_cursor(path, Cursor(outbox.epoch, 40, {}))
    corrupted(path, *((4096 * 3, 4096 * 5) if is_readable else (0, 4096)))
    losses = {"lost_disk": 7, "lost_outbox": 60, "outbox_set_aside": 1}
    with opened(path) as outbox:
        assert outbox.next_sequence == 1
        assert outbox.counters == losses
    with opened(path) as outbox:
        assert outbox.counters == losses, "told once, not once per start"
        fill(outbox, "ff")
    corrupted(path, 0, 4096)
    with opened(path) as outbox:
        assert outbox.counters == {"lost_disk": 7, "lost_outbox": 62, "outbox_set_aside": 2}


def test_outbox_and_note_both_unreadable_count_the_file_alone(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "f" * 100)
    corrupted(path, 0, path.stat().st_size)
    LossesFile(path).path.unlink()
    with opened(path) as outbox:
        assert outbox.counters == {"outbox_set_aside": 1}


def test_nonsense_numbers_of_a_corrupt_outbox_count_no_more_than_had_room(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "f" * 10)
        outbox._db.execute("UPDATE sqlite_sequence SET seq = 99999999")
        outbox._db.execute("UPDATE counters SET value = 5 WHERE name = '_last_sequence'")
        outbox._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy").replace(path)
    with opened(path, max_rows=50) as outbox:
        assert outbox.counters == {"lost_outbox": 50, "outbox_set_aside": 1}


def test_dropped_pass_has_no_picture_and_is_not_counted_durable_nor_a_failing_disk(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path, max_rows=2) as outbox:
        fill(outbox, "ff")
        told = []
        recorder = Recorder(outbox, Counts(), Pulse(Event()), 30.0)
        draft = msgspec.structs.replace(inspection_for(outbox, "pass"), sequence=0)
        recorder.record([Record(draft, 0.0, (), lambda record, is_kept: told.append(is_kept))])
        assert told == [False]
        assert recorder.durable.percentiles() == type(recorder.durable)().percentiles()
        assert recorder.last_inspection_at is None
        assert recorder.refused_since_s is None, "the disk took what it was given"


def test_epoch_deleted_while_stopped_still_tells_its_losses(tmp_path):
    path = tmp_path / "outbox.sqlite"
    with opened(path) as outbox:
        fill(outbox, "ff")
        outbox.count("lost_disk", 3)
        outbox.count("inspected", 5)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    cursor_path_of(path).unlink(missing_ok=True)
    with opened(path) as outbox:
        assert (outbox.next_sequence, outbox.counters) == (1, {"lost_disk": 3})


def test_group_lost_on_a_full_disk_is_one_note(small_disk):  # noqa: F811
    path = small_disk / "outbox.sqlite"
    with opened(path, max_bytes=1 << 30) as outbox:
        fill(outbox, "f" * 20)
        fill_disk(small_disk)
        lose_all(outbox)
        number = outbox._losses._number
        stored = outbox.append_all(group_of(outbox, "f" * 20, reason="x" * 2_000))
        assert stored == [False] * 20
        assert outbox._losses._number == number + 1
        assert outbox._losses.path.stat().st_size == 8192
