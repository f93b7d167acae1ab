"""What a consumer knows of each station: what arrived, what came twice, what is missing.

Pure rules, bounded memory, made for hostile bytes: every message that reaches us is either
understood or counted as foreign, and no station can make the ledger grow without end.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Literal

from edge.messages import (
    Health,
    Inspection,
    Message,
    Presence,
    UnreadableMessage,
    decode,
)
from edge.topics import StationId, station_and_kind

LARGEST_PAYLOAD_BYTES = 64 << 10
_LONGEST_NAME = 200  # characters of an id or an epoch: ours have 36 and some digits
_LARGEST_SEQUENCE = 1 << 53  # what JSON readers everywhere keep exact
_REMEMBERED_IDS = 100_000
_STATIONS = 2_000
_EPOCHS = 4  # per station
_HOLES = 200  # separate gaps per epoch; beyond them the oldest are final

Arrival = Literal["new", "late", "duplicate"]


class Sequences:
    """Which sequence numbers of one epoch arrived. Holes are half-open ranges still missing."""

    def __init__(self, first: int) -> None:
        self._first = first  # what came before we listened is not ours to miss
        self._next = first
        self._holes: deque[tuple[int, int]] = deque()  # in ascending order
        self._final = 0

    @property
    def missing(self) -> int:
        """Numbers that were jumped over and did not come yet."""
        return self._final + sum(end - start for start, end in self._holes)

    def take(self, sequence: int) -> Arrival:
        """Note one number; say whether it is new, fills a hole, or was here before."""
        if sequence >= self._next:
            if sequence > self._next:
                self._add_hole(self._next, sequence)
            self._next = sequence + 1
            return "new"
        if sequence < self._first:
            # The listener joined in the middle of a resend: what lies between is on its way.
            if sequence + 1 < self._first:
                self._holes.appendleft((sequence + 1, self._first))
                self._settle_oldest_holes()
            self._first = sequence
            return "late"
        return self._fill(sequence)

    def _add_hole(self, start: int, end: int) -> None:
        self._holes.append((start, end))
        self._settle_oldest_holes()

    def _settle_oldest_holes(self) -> None:
        while len(self._holes) > _HOLES:
            start, end = self._holes.popleft()
            self._final += end - start

    def _fill(self, sequence: int) -> Arrival:
        for index, (start, end) in enumerate(self._holes):
            if start <= sequence < end:
                rest = [(start, sequence), (sequence + 1, end)]
                del self._holes[index]
                for piece in reversed([(a, b) for a, b in rest if a < b]):
                    self._holes.insert(index, piece)
                self._settle_oldest_holes()
                return "late"
        return "duplicate"


@dataclass
class StationTally:
    """What one station reported so far."""

    station: StationId
    presence: str = "?"
    decisions: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    late: int = 0  # arrived behind a higher number
    last: str = ""  # the latest verdict in words, the decision first: a narrow screen cuts the end
    health: Health | None = None
    epochs: OrderedDict[str, Sequences] = field(default_factory=OrderedDict)
    missing_before: int = 0  # in epochs that were forgotten

    @property
    def missing(self) -> int:
        """Sequence numbers that never came, over all epochs seen."""
        return self.missing_before + sum(epoch.missing for epoch in self.epochs.values())


class Ledger:
    """Takes payloads, keeps the count. De-duplicates by `inspection_id`."""

    def __init__(self) -> None:
        self.stations: dict[StationId, StationTally] = {}
        self.inspections = 0  # distinct ones, of every station
        self.foreign = 0  # payloads that are no message of ours
        self.last_foreign = ""  # why the last of them was not understood
        self._ids: OrderedDict[tuple[StationId, str], None] = OrderedDict()

    @property
    def duplicates(self) -> int:
        """Inspections that came again."""
        return sum(tally.duplicates for tally in self.stations.values())

    @property
    def missing(self) -> int:
        """Sequence numbers that never came."""
        return sum(tally.missing for tally in self.stations.values())

    @property
    def late(self) -> int:
        """Inspections that arrived behind a later one."""
        return sum(tally.late for tally in self.stations.values())

    def take(self, topic: str, payload: bytes) -> Message | None:
        """Count one payload. Returns the message, or None for a duplicate or a foreign one."""
        try:
            message = message_from(topic, payload)
            tally = self._tally_of(message.station)
        except UnreadableMessage as problem:
            self.foreign += 1
            self.last_foreign = str(problem)[:200]
            return None
        if isinstance(message, Inspection):
            return message if self._take_inspection(tally, message) else None
        if isinstance(message, Presence):
            tally.presence = message.state
        else:
            tally.health = message
        return message

    def _tally_of(self, station: StationId) -> StationTally:
        tally = self.stations.get(station)
        if tally is None:
            if len(self.stations) >= _STATIONS:
                raise UnreadableMessage(f"more than {_STATIONS} stations")
            tally = self.stations[station] = StationTally(station)
        return tally

    def _take_inspection(self, tally: StationTally, inspection: Inspection) -> bool:
        """Return whether it is the first time that this inspection arrives."""
        # Beside its station: no other station can pass off an id as seen.
        key = (inspection.station, inspection.inspection_id)
        if key in self._ids:
            tally.duplicates += 1
            return False
        arrival = self._epoch_of(tally, inspection).take(inspection.sequence)
        if arrival == "duplicate":  # an id that we had to forget, a number that we remember
            tally.duplicates += 1
            return False
        self._ids[key] = None
        if len(self._ids) > _REMEMBERED_IDS:
            self._ids.popitem(last=False)
        self.inspections += 1
        tally.late += arrival == "late"
        tally.decisions[inspection.decision] += 1
        words = (inspection.decision, inspection.label, inspection.sample_id, inspection.reason)
        tally.last = " ".join(word for word in words if word)[:_LONGEST_NAME]
        return True

    def _epoch_of(self, tally: StationTally, inspection: Inspection) -> Sequences:
        epoch = tally.epochs.get(inspection.station_epoch)
        if epoch is None:
            epoch = tally.epochs[inspection.station_epoch] = Sequences(inspection.sequence)
            if len(tally.epochs) > _EPOCHS:
                _, forgotten = tally.epochs.popitem(last=False)
                tally.missing_before += forgotten.missing
        return epoch


def message_from(topic: str, payload: bytes) -> Message:
    """Read one message of a station. Raises UnreadableMessage, never anything else."""
    place = station_and_kind(topic)
    if place is None:
        raise UnreadableMessage(f"not a topic of ours: {topic[:100]!r}")
    if len(payload) > LARGEST_PAYLOAD_BYTES:
        raise UnreadableMessage(f"{len(payload)} bytes, more than {LARGEST_PAYLOAD_BYTES}")
    station, kind = place
    if len(str(station)) > _LONGEST_NAME:
        raise UnreadableMessage("a station's name longer than any that we take")
    message: Message
    if kind == "inspection":
        message = decode(payload, Inspection)
    elif kind == "presence":
        message = decode(payload, Presence)
    else:
        message = decode(payload, Health)
    if message.station != station:
        raise UnreadableMessage(f"sent by {message.station} on the topic of {station}"[:200])
    if isinstance(message, Inspection):
        if max(len(message.inspection_id), len(message.station_epoch)) > _LONGEST_NAME:
            raise UnreadableMessage("an id longer than any of ours")
        if not 1 <= message.sequence < _LARGEST_SEQUENCE:
            raise UnreadableMessage("a sequence number out of range")
    return message


def verdict_text(inspection: Inspection) -> str:
    """Write a verdict in a few words."""
    words = [inspection.sample_id, inspection.decision, inspection.label]
    if inspection.anomaly_score is not None:
        words.append(f"{inspection.anomaly_score:.3f} (threshold {inspection.threshold:.3f})")
    if inspection.reason:
        words.append(f"[{inspection.reason}]")
    return " ".join(word for word in words if word)
