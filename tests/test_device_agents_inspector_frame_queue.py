"""The queue of frames: who goes first, and who goes when it is full."""

import threading
import time

import numpy as np

from device_agents.inspector.counts import Counts
from device_agents.inspector.frame_queue import OVERDUE_ROOM, FrameQueue, Part
from device_agents.parts import Reading, Shot
from edge.sample import Frame

PIXELS = np.zeros((4, 4, 3), np.uint8)


def part(name: str, *, triggered: bool = True) -> Part:
    return Part(Shot(name, name, None, Frame(PIXELS, 0), triggered=triggered), Reading(None), 1, 10)


def queue_of(room: int, *parts: Part) -> tuple[FrameQueue, Counts]:
    counts = Counts()
    queue = FrameQueue(room, counts)
    for one in parts:
        queue.put(one)
    return queue, counts


def names(parts) -> list[str]:
    return [one.shot.sample_id for one in parts]


def taken(queue: FrameQueue, most: int = 100):
    return queue.take(most, 1, 0.0, 0.01)


def test_triggered_parts_go_first_and_each_kind_oldest_first():
    queue, _ = queue_of(
        *(8, part("f1", triggered=False), part("t1"), part("f2", triggered=False), part("t2"))
    )
    assert names(taken(queue, 3).parts) == ["t1", "t2", "f1"]
    assert names(taken(queue).parts) == ["f2"]


def test_full_queue_lets_the_oldest_free_running_frame_go_first():
    free = [part(f"f{n}", triggered=False) for n in range(4)]
    queue, counts = queue_of(3, *free, part("t0"))
    assert queue.depth == 3
    got = taken(queue)
    assert (names(got.parts), got.overdue) == (["t0", "f2", "f3"], [])
    assert counts.drain()[0] == {"dropped_free_running": 2}


def test_free_running_frame_finds_no_room_among_triggered_parts():
    queue, counts = queue_of(2, part("t0"), part("t1"), part("f0", triggered=False))
    assert names(taken(queue).parts) == ["t0", "t1"]
    assert counts.drain()[0] == {"dropped_free_running": 1}


def test_full_of_triggered_parts_the_oldest_is_answered_without_its_frame():
    queue, counts = queue_of(2, *(part(f"t{n}") for n in range(5)))
    got = taken(queue)
    assert names(got.parts) == ["t3", "t4"]
    assert names(got.overdue) == ["t0", "t1", "t2"]
    assert all(one.shot.frame is None for one in got.overdue), "a frame kept would have no bound"
    assert counts.drain()[0] == {}, "counted with their records"


def test_answers_without_frames_have_a_bound_and_the_loss_a_name():
    queue, counts = queue_of(1, *(part(f"t{n}") for n in range(OVERDUE_ROOM + 6)))
    got = taken(queue)
    assert len(got.overdue) == OVERDUE_ROOM
    assert names(got.overdue)[0] == "t5"
    assert counts.drain()[0] == {"lost_behind": 5}


def test_batch_waits_for_its_places_until_the_deadline_of_its_oldest_part():
    queue, _ = queue_of(8, part("t0"))
    threading.Timer(0.05, queue.put, [part("t1")]).start()
    threading.Timer(0.10, queue.put, [part("t2")]).start()
    began = time.monotonic()
    assert names(queue.take(4, 3, 10.0, 8.0).parts) == ["t0", "t1", "t2"]
    assert time.monotonic() - began < 5, "full enough: no wait for the deadline"
    queue.put(part("t3"))
    began = time.monotonic()
    assert names(queue.take(4, 4, 0.2, 5.0).parts) == ["t3"]
    assert time.monotonic() - began > 0.1


def test_part_that_waited_longer_than_the_deadline_waits_no_more():
    queue, _ = queue_of(8, part("t0"))
    time.sleep(0.05)
    began = time.monotonic()
    assert names(queue.take(4, 4, 0.04, 5.0).parts) == ["t0"]
    assert time.monotonic() - began < 2


def test_closed_queue_gives_what_waits_and_then_its_end():
    queue, counts = queue_of(8, part("t0"))
    queue.close()
    queue.put(part("t1"))
    assert names(taken(queue).parts) == ["t0"]
    assert taken(queue) is None
    assert counts.drain()[0] == {"dropped_at_stop": 1}


def test_idle_queue_returns_so_that_its_thread_can_say_that_it_lives():
    queue, _ = queue_of(8)
    got = queue.take(4, 4, 1.0, 0.01)
    assert (got.parts, got.overdue) == ([], [])


def test_long_deadline_does_not_keep_the_thread_from_saying_that_it_lives():
    queue, _ = queue_of(8, part("t0"))
    assert names(queue.take(4, 4, 600.0, 0.05).parts) == []
    assert queue.depth == 1
    assert names(queue.take(4, 1, 600.0, 0.05).parts) == ["t0"]
