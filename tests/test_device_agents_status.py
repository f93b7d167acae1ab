"""What the agents tell each other: also on a full disk, also in the middle of a write."""

import os
import threading
from pathlib import Path

import pytest
from test_device_agents_outbox_faults import fill_disk, small_disk  # noqa: F401  a fixture

from device_agents.status import read_status, status_path_of, write_status
from edge.messages import InspectorHealth


def inspector(state: str = "ready", **fields) -> InspectorHealth:
    return InspectorHealth(state=state, **fields)


def test_status_is_read_back_and_a_shorter_one_leaves_nothing_of_the_longer(tmp_path):
    outbox = tmp_path / "outbox.sqlite"
    for status in (inspector(reason="x" * 5_000), inspector()):
        write_status(outbox, status)
        assert read_status(outbox, InspectorHealth, fresh_s=5) == status


@pytest.mark.parametrize(
    ("state", "stays"), [("ready", False), ("degraded", False), ("stopped", True), ("failed", True)]
)
def test_old_status_is_none_but_last_words_stay_true(tmp_path, state, stays):
    outbox = tmp_path / "outbox.sqlite"
    assert read_status(outbox, InspectorHealth, fresh_s=5) is None
    write_status(outbox, inspector(state, reason="why"))
    os.utime(status_path_of(outbox, InspectorHealth), (1, 1))
    found = read_status(outbox, InspectorHealth, fresh_s=5)
    assert found == (inspector(state, reason="why") if stays else None)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 100_000, b'{"state": "well"}'])
def test_file_that_is_no_status_is_none(tmp_path, content):
    status_path_of(tmp_path / "o", InspectorHealth).write_bytes(content)
    assert read_status(tmp_path / "o", InspectorHealth, fresh_s=5) is None


def test_full_disk_does_not_keep_the_status_from_being_said(small_disk: Path):  # noqa: F811
    outbox = small_disk / "outbox.sqlite"
    write_status(outbox, inspector())
    fill_disk(small_disk)
    status = inspector("degraded", reason="the disk is full")
    write_status(outbox, status)
    assert read_status(outbox, InspectorHealth, fresh_s=5) == status


def test_reader_beside_a_writer_never_gets_half_a_status(tmp_path):
    outbox = tmp_path / "outbox.sqlite"
    statuses = [inspector(reason=letter * 10_000) for letter in "ab"]
    stop = threading.Event()
    write_status(outbox, statuses[0])

    def write() -> None:
        while not stop.is_set():
            for status in statuses:
                write_status(outbox, status)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = [read_status(outbox, InspectorHealth, fresh_s=60) for _ in range(500)]
    finally:
        stop.set()
        writer.join()
    assert {s.reason for s in found if s is not None} <= {"a" * 10_000, "b" * 10_000}
    assert sum(s is None for s in found) < 250, "readable most of the time, under a writer in haste"
