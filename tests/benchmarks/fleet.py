"""A plant's worth of stations on one broker: is anything lost, how late, at whose cost.

Each simulated station has what a real one has: a connection of its own, a client id, a last will,
an epoch, a sequence, and the publisher's own rules of what is in flight (`Link`, `InFlight`). Many
of them share a process, because five hundred Python processes would measure the machine's memory.
The consumer is the real listener with the real ledger, in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np

from device_agents.broker import broker_kind, running_broker
from device_agents.consumer.ledger import Ledger
from device_agents.consumer.listener import Subscriber, received_from
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.link import Link, Will
from device_agents.parts import iso_of
from device_agents.publisher.in_flight import InFlight
from edge.errors import MachineError
from edge.messages import Inspection, Presence, Timings, encode
from edge.topics import StationId, topic_of
from tests.benchmarks.machine import Usage, percentiles

STATIONS, SECONDS, PER_SECOND = 500, 300.0, 2.0
_QUICK = (60, 6.0)
_PROCESSES = 2
_IN_FLIGHT = 20
_SWEEP_S = 0.5  # how often every link is turned, for keepalive
_SETTLE_S = 20.0
_AGAIN_AFTER_S = 0.5
_SPARE_FILES = 64


def run(*, quick: bool = False) -> dict:
    """Print the table and return its figures; `kept` says whether none was lost."""
    with contextlib.suppress(MachineError):
        if broker_kind() == "mosquitto":
            figures = measure(*(_QUICK if quick else (STATIONS, SECONDS)))
            _print(figures)
            return figures
    print("fleet: SKIPPED, Mosquitto is not installed")
    return {"skipped": "Mosquitto is not installed"}


def measure(stations: int = STATIONS, seconds: float = SECONDS) -> dict:
    """Let so many stations send `PER_SECOND` records each for so long; return what came of it."""
    _raise_file_limit(stations + _SPARE_FILES)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        broker = stack.enter_context(running_broker(folder / "broker", kind="mosquitto"))
        consumer = stack.enter_context(_child("consume", broker.port, folder / "received"))
        assert consumer.stdout.readline() == b"connected\n"
        shares = [len(range(i, stations, _PROCESSES)) for i in range(_PROCESSES)]
        senders = [
            stack.enter_context(_child("send", broker.port, folder / f"sent{i}", i, n, seconds))
            for i, n in enumerate(shares)
        ]
        for sender in senders:
            assert sender.stdout.readline() == b"connected\n", "a station could not connect"
        pids = {"broker": broker._process.pid, "consumer": consumer.pid}
        before = {who: Usage.of(pid) for who, pid in pids.items()}
        started = time.monotonic()
        for sender in senders:
            sender.stdin.write(b"go\n")
            sender.stdin.flush()
        for sender in senders:
            assert sender.wait(seconds + 60) == 0
        spent = {who: Usage.of(pid).since(before[who]) for who, pid in pids.items()}
        wall_s = time.monotonic() - started
        consumer.communicate(b"enough\n", timeout=60)
        sent = [json.loads((folder / f"sent{i}").read_text()) for i in range(_PROCESSES)]
        received = json.loads((folder / "received").read_text())
    total = sum(part["sent"] for part in sent)
    return {
        "stations": stations,
        "seconds": seconds,
        "messages_per_second": total / seconds,
        "sent": total,
        "acknowledged": sum(part["acknowledged"] for part in sent),
        "reconnections": sum(part["reconnections"] for part in sent),
        **received,
        "cpu_percent": {who: 100 * used.cpu_s / wall_s for who, used in spent.items()},
        "sender_cpu_percent": sum(part["cpu_s"] for part in sent) / wall_s * 100,
        "rss_mib": {who: used.rss_bytes / 2**20 for who, used in spent.items()},
        "lost": total - received["received"],
        "kept": total == received["received"] and received["missing"] == 0,
    }


def _print(f: dict) -> None:
    late = f["latency_ms"]
    print(
        f"\nfleet: {f['stations']} stations on one Mosquitto, {f['messages_per_second']:.0f} "
        f"messages/s for {f['seconds']:.0f} s\n"
        f"  sent {f['sent']}, acknowledged {f['acknowledged']}, received {f['received']} distinct, "
        f"{f['duplicates']} twice, {f['missing']} missing, {f['late']} out of order, "
        f"{f['reconnections']} reconnections\n"
        f"  publish to receipt: p50 {late['p50']:.2f} ms, p99 {late['p99']:.2f} ms, "
        f"p99.9 {late['p99.9']:.2f} ms, max {late['max']:.1f} ms\n"
        f"  CPU of one core: broker {f['cpu_percent']['broker']:.0f} %, consumer "
        f"{f['cpu_percent']['consumer']:.0f} %, all simulated stations "
        f"{f['sender_cpu_percent']:.0f} %; memory: broker {f['rss_mib']['broker']:.0f} MiB, "
        f"consumer {f['rss_mib']['consumer']:.0f} MiB\n"
        f"  {'kept  ' if f['kept'] else 'BROKEN'} none lost"
    )


@contextlib.contextmanager
def _child(*words: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.benchmarks.fleet", *map(str, words)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            pipe.close()


class SimulatedStation:
    """One station: records due twice a second, sent and settled by the publisher's rules."""

    def __init__(self, number: int, port: int, first_due_s: float) -> None:
        self._id = StationId("plant", f"area{number // 100}", f"line{number // 10}", f"s{number}")
        self._epoch = str(uuid.uuid4())
        self._broker = BrokerAddress("127.0.0.1", port, keepalive_s=20)
        self._topic = topic_of(self._id, "inspection")
        self._in_flight = InFlight(0)
        self._records: dict[int, bytes] = {}  # not acknowledged yet
        self._due_s = first_due_s
        self._again_s = 0.0
        self.sent = 0
        self.reconnections = -1
        self.link: Link | None = None

    @property
    def acknowledged(self) -> int:
        return self._in_flight.acknowledged

    def connect(self) -> int:
        """Connect; return the socket's file descriptor. Raises MachineError."""
        will = Will(topic_of(self._id, "presence"), self._presence("offline"))
        self.link = None
        link = Link(self._broker, f"fleet-{str(self._id).replace('/', '-')}", will=will)
        link.open()
        self._in_flight.rewind()
        link.publish(topic_of(self._id, "presence"), self._presence("online"), qos=1, retain=True)
        self.link = link
        self.reconnections += 1
        return link._client.socket().fileno()

    def turn(self, now_s: float, until_s: float) -> None:
        """Write the records that are due, send what the window takes."""
        while self._due_s <= min(now_s, until_s):
            self._due_s += 1 / PER_SECOND
            self.sent += 1
            self._records[self.sent] = encode(self._inspection(self.sent))
        if self.link is None:
            return
        while self._in_flight.last_sent < self.sent and len(self._in_flight) < _IN_FLIGHT:
            sequence = self._in_flight.last_sent + 1
            message_id = self.link.publish(self._topic, self._records[sequence], qos=1)
            self._in_flight.sent(sequence, message_id)

    def listen(self) -> bool:
        """Turn the network; return whether the connection stands."""
        if self.link is None:
            return False
        self.link.step(0.0)
        for message_id, reason_code in self.link.take_acknowledged():
            assert reason_code < 0x80, hex(reason_code)
            sequence = self._in_flight.sequence_of(message_id)
            self._in_flight.settle(message_id)
            self._records.pop(sequence, None)
        if self.link.ended is not None:
            self.link, self._again_s = None, time.monotonic() + _AGAIN_AFTER_S
        return self.link is not None

    def wants_to_connect(self, now_s: float) -> bool:
        return self.link is None and now_s >= self._again_s

    def _presence(self, state: str) -> bytes:
        return encode(Presence(station=self._id, state=state))

    def _inspection(self, sequence: int) -> Inspection:
        now_ns = time.time_ns()
        return Inspection(
            inspection_id=f"{self._epoch}-{sequence}",
            station=self._id,
            station_epoch=self._epoch,
            sequence=sequence,
            sample_id=str(now_ns),  # the consumer reads from it how long the way took
            part_id=f"part{sequence}",
            captured_at=iso_of(now_ns),
            inspected_at=iso_of(now_ns),
            decision="pass",
            label="good",
            anomaly_score=0.1234,
            threshold=0.5,
            class_scores={"good": 0.9, "scratch": 0.06, "dent": 0.04},
            modalities=("image", "sensor"),
            reason="",
            bundle_digest="0" * 64,
            engine="simulated",
            timings=Timings(0.2, 9.0, 9.4),
        )


def _send(port: int, out: Path, index: int, count: int, seconds: float) -> None:
    """Be `count` stations until all that they sent is acknowledged, or it takes too long."""
    _raise_file_limit(count + _SPARE_FILES)
    numbers = range(index, index + count * _PROCESSES, _PROCESSES)
    stations = [SimulatedStation(n, port, float("inf")) for n in numbers]
    poll = select.epoll()
    by_fd: dict[int, SimulatedStation] = {}
    for station in stations:
        _register(poll, by_fd, station)
    print("connected", flush=True)
    sys.stdin.readline()
    until_s = time.monotonic() + seconds
    for station in stations:
        station._due_s = until_s - seconds + random.random() / PER_SECOND
    swept_s = 0.0
    while time.monotonic() < until_s + _SETTLE_S:
        now_s = time.monotonic()
        if now_s > until_s and all(s.acknowledged == s.sent for s in stations):
            break
        for station in stations:
            station.turn(now_s, until_s)
        ready = [by_fd[fd] for fd, _ in poll.poll(0.005) if fd in by_fd]
        if now_s - swept_s > _SWEEP_S:
            swept_s, ready = now_s, stations
        for station in ready:
            if not station.listen() and station.wants_to_connect(now_s):
                with contextlib.suppress(MachineError):
                    _register(poll, by_fd, station)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    facts = {
        "sent": sum(station.sent for station in stations),
        "acknowledged": sum(station.acknowledged for station in stations),
        "reconnections": sum(station.reconnections for station in stations),
        "cpu_s": spent.ru_utime + spent.ru_stime,
    }
    out.write_text(json.dumps(facts))


def _register(
    poll: select.epoll, by_fd: dict[int, SimulatedStation], station: SimulatedStation
) -> None:
    descriptor = station.connect()
    by_fd[descriptor] = station
    with contextlib.suppress(OSError):  # a number that was closed and is used again
        poll.unregister(descriptor)
    poll.register(descriptor, select.EPOLLIN)


def _consume(port: int, out: Path) -> None:
    """Receive with the real listener and the real ledger until a line comes on standard input."""
    ledger, stop, said = Ledger(), Event(), False
    spent_ms: list[float] = []
    quiet_since = time.monotonic()
    subscriber = Subscriber(BrokerAddress("127.0.0.1", port), "fleet-consumer", 3600)
    for received in received_from(subscriber, stop):
        now_ns, now_s = time.time_ns(), time.monotonic()
        if not said:
            said = True
            print("connected", flush=True)
        if received is None:
            enough = select.select([sys.stdin], [], [], 0)[0]
            if enough and now_s - quiet_since > 1.0:
                stop.set()
            continue
        quiet_since = now_s
        message = ledger.take(received.topic, received.payload)
        if isinstance(message, Inspection):
            spent_ms.append((now_ns - int(message.sample_id)) / 1e6)
    facts = {
        "received": ledger.inspections,
        "duplicates": ledger.duplicates,
        "missing": ledger.missing,
        "late": ledger.late,
        "foreign": ledger.foreign,
        "latency_ms": percentiles(np.asarray(spent_ms)),
    }
    out.write_text(json.dumps(facts))


def _raise_file_limit(wanted: int) -> None:
    """Allow so many open files, or say why five hundred connections cannot be made."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise MachineError(
            where="open files (ulimit -n)",
            expected=f"room for {wanted}, one for each station",
            found=f"at most {hard}",
            do="Raise the hard limit (/etc/security/limits.conf), or ask for fewer stations.",
        )
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    what, port, out, *rest = sys.argv[1:]
    if what == "send":
        _send(int(port), Path(out), int(rest[0]), int(rest[1]), float(rest[2]))
    else:
        _consume(int(port), Path(out))
