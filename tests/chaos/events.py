"""What can happen to a line, each as one function that does it, waits, and undoes it."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.line import Line
from tests.chaos.witnesses import OutboxWitness, Subscriber
from tests.proxy import DIRECTIONS, LinkProxy


@dataclass
class Scene:
    """What an event can reach."""

    line: Line
    proxy: LinkProxy
    subscriber: Subscriber
    witness: OutboxWitness
    chance: random.Random
    disk_refused: int = 0  # full disks on which the outbox could not go on

    def pause(self, least_s: float, most_s: float) -> None:
        time.sleep(self.chance.uniform(least_s, most_s))


def kill_inspector(scene: Scene) -> None:
    scene.line.inspector.end(signal.SIGKILL)
    scene.pause(0.0, 0.3)
    scene.line.inspector.start()


def kill_publisher(scene: Scene) -> None:
    scene.line.publisher.end(signal.SIGKILL)
    scene.pause(0.0, 0.3)
    scene.line.publisher.start()


def kill_broker(scene: Scene) -> None:
    # Not while the consumer is away: what the broker then holds for it in memory alone is what
    # Mosquitto forgets by design (it saves once a second). The judge would name it, and it says
    # nothing of the station.
    scene.subscriber.connected.wait(5)
    scene.line.broker.end(signal.SIGKILL)
    scene.pause(0.1, 1.5)
    scene.line.start_broker()


def restart_broker(scene: Scene) -> None:
    scene.line.broker.end()
    scene.pause(0.1, 1.5)
    scene.line.start_broker()


def cut_link(scene: Scene) -> None:
    for _ in range(scene.chance.randint(1, 3)):
        scene.proxy.cut()
        scene.pause(0.05, 0.7)


def unplug_link(scene: Scene) -> None:
    scene.proxy.refuses = True
    scene.proxy.cut()
    scene.pause(0.5, 2.0)
    scene.proxy.refuses = False


def half_open_link(scene: Scene) -> None:
    """One direction or both go silent for ever; the station must find out by itself."""
    ways = [frozenset(DIRECTIONS[:1]), frozenset(DIRECTIONS[1:]), frozenset(DIRECTIONS)]
    scene.proxy.half_open(scene.chance.choice(ways))


def fill_disk(scene: Scene) -> None:
    scene.line.disk.fill()
    scene.pause(0.3, 1.5)
    scene.line.disk.free()


def fill_disk_to_the_last_page(scene: Scene) -> None:
    """SQLite goes on for long in the log file that it has: here that is taken away first."""
    scene.line.take_log_away()
    scene.line.disk.fill()
    seen = scene.witness.seen
    scene.pause(0.5, 2.0)
    scene.disk_refused += scene.witness.seen - seen < scene.line.parts_per_second * 0.4
    if scene.chance.random() < 0.5:
        scene.proxy.cut()
        scene.pause(0.1, 0.7)
    scene.line.disk.free()


def restart_all(scene: Scene) -> None:
    """A power cut, as far as one machine can play it: everything at once, then a new start."""
    scene.subscriber.connected.wait(5)
    number = scene.chance.choice([signal.SIGKILL, signal.SIGTERM])
    for process in scene.chance.sample(scene.line.processes, 3):
        process.end(number)
    scene.line.start_broker()
    scene.line.inspector.start()
    scene.line.publisher.start()


def kill_inspector_on_full_disk(scene: Scene) -> None:
    if scene.chance.random() < 0.5:
        scene.line.take_log_away()
    scene.line.disk.fill()
    scene.pause(0.1, 0.5)
    scene.line.inspector.end(signal.SIGKILL)
    scene.line.inspector.start()
    scene.pause(0.5, 1.5)
    scene.line.disk.free()


def kill_publisher_while_broker_is_away(scene: Scene) -> None:
    scene.subscriber.connected.wait(5)
    scene.line.broker.end(signal.SIGKILL)
    scene.pause(0.1, 0.8)
    scene.line.publisher.end(signal.SIGKILL)
    scene.line.publisher.start()
    scene.pause(0.1, 0.8)
    scene.line.start_broker()


SINGLE: tuple[Callable[[Scene], None], ...] = (
    *(kill_inspector, kill_publisher, kill_broker, restart_broker),
    *(cut_link, unplug_link, half_open_link, fill_disk, restart_all),
)
DOUBLE: tuple[Callable[[Scene], None], ...] = (
    fill_disk_to_the_last_page,
    kill_inspector_on_full_disk,
    kill_publisher_while_broker_is_away,
)
KINDS = (*SINGLE, *DOUBLE)
NEEDS_DISK = (fill_disk, fill_disk_to_the_last_page, kill_inspector_on_full_disk)


def deck(
    chance: random.Random, rounds: int, *, disk: bool, only: str | None = None
) -> list[Callable[[Scene], None]]:
    """Return what happens in each round: every kind before any comes again, each time shuffled."""
    kinds = [kind for kind in KINDS if disk or kind not in NEEDS_DISK]
    kinds = [kind for kind in kinds if only in (None, name_of(kind))]
    order: list[Callable[[Scene], None]] = []
    while kinds and len(order) < rounds:
        order += chance.sample(kinds, len(kinds))
    return order[:rounds]


def name_of(event: Callable[[Scene], None]) -> str:
    """Return an event's name for people."""
    return event.__name__.replace("_", " ")
