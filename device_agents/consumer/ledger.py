"""What a consumer knows of each station: what arrived, what came twice, what is missing.

Pure rules, bounded memory, made for hostile bytes: every message that reaches us is either
understood or counted as foreign, and no station can make the ledger grow without end, nor push
what is remembered of another out of it. One station takes about 30 KB once it has sent some
hundred messages, and under 200 KB whatever it sends.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Literal

from edge.messages import (
    KIND_TYPES,
    Command,
    Health,
    Inspection,
    Message,
    Presence,
    UnreadableMessage,
    decode,
)
from edge.topics import DOCTOR, ROOT, StationId, station_and_kind

LARGEST_PAYLOAD_BYTES = 64 << 10
LARGEST_PICTURE_BYTES = 4 << 20  # of a `picture` message, base64 and all
_LONGEST_TEXT = 200  # characters of a verdict or a state that are kept
_REMEMBERED_IDS = 200  # per station; beyond them the sequence tells what came before
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
    """What one station reported so far. Nothing in it is larger than a line of text."""

    station: StationId
    presence: str = "?"
    decisions: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    late: int = 0  # arrived behind a higher number
    last: str = ""  # the latest verdict in words, the decision first: a narrow screen cuts the end
    waiting: int | None = None  # in its outbox, by its latest health
    state: str = ""  # of its inspector, by its latest health
    pictures: int = 0
    foreign: int = 0  # payloads on its topics that are no message of ours
    epochs: OrderedDict[str, Sequences] = field(default_factory=OrderedDict)
    missing_before: int = 0  # in epochs that were forgotten
    # Hashes, keyed anew in each process: a fifth of the memory, and nobody can aim at one.
    _ids: dict[int, None] = field(default_factory=dict)  # in order of arrival

    @property
    def missing(self) -> int:
        """Sequence numbers that never came, over all epochs seen."""
        return self.missing_before + sum(epoch.missing for epoch in self.epochs.values())

    def has_seen(self, inspection_id: str) -> bool:
        """Tell whether the id is among the latest that arrived."""
        return hash(inspection_id) in self._ids

    def remember(self, inspection_id: str) -> None:
        """Keep the id, and forget the oldest."""
        self._ids[hash(inspection_id)] = None
        if len(self._ids) > _REMEMBERED_IDS:
            del self._ids[next(iter(self._ids))]


class Ledger:
    """Takes payloads, keeps the count. De-duplicates by `inspection_id`."""

    def __init__(self) -> None:
        self.stations: dict[StationId, StationTally] = {}
        self.inspections = 0  # distinct ones, of every station
        self.foreign = 0  # payloads that are no message of ours
        self.last_foreign = ""  # why the last of them was not understood

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

    @property
    def pictures(self) -> int:
        """Pictures that arrived, resent ones included."""
        return sum(tally.pictures for tally in self.stations.values())

    def take(self, topic: str, payload: bytes) -> Message | None:
        """Count one payload. Returns the message, or None for a duplicate or a foreign one."""
        if topic.startswith(f"{ROOT}/") and topic.endswith(f"/{DOCTOR}"):
            return None  # somebody looked at a station; that is no message of it
        try:
            place, message = message_from(topic, payload)
            # A command comes from somebody else: it makes no station known.
            tally = self._tally_of(place) if not isinstance(message, Command) else None
        except UnreadableMessage as problem:
            self._count_foreign(topic, str(problem))
            return None
        if tally is None:
            return message
        if isinstance(message, Inspection):
            return message if self._take_inspection(tally, message) else None
        if isinstance(message, Presence):
            tally.presence = message.state
        elif isinstance(message, Health):
            tally.waiting = message.outbox_depth
            tally.state = "" if message.inspector is None else message.inspector.state
        else:
            tally.pictures += 1
        return message

    def _count_foreign(self, topic: str, problem: str) -> None:
        self.foreign += 1
        self.last_foreign = problem[:_LONGEST_TEXT]
        place = station_and_kind(topic)
        if place is not None and place[0] in self.stations:
            self.stations[place[0]].foreign += 1

    def _tally_of(self, station: StationId) -> StationTally:
        tally = self.stations.get(station)
        if tally is None:
            if len(self.stations) >= _STATIONS:
                raise UnreadableMessage(f"more than {_STATIONS} stations")
            tally = self.stations[station] = StationTally(station)
        return tally

    def _take_inspection(self, tally: StationTally, inspection: Inspection) -> bool:
        """Return whether it is the first time that this inspection arrives."""
        if tally.has_seen(inspection.inspection_id):
            tally.duplicates += 1
            return False
        arrival = self._epoch_of(tally, inspection).take(inspection.sequence)
        if arrival == "duplicate":  # an id that we had to forget, a number that we remember
            tally.duplicates += 1
            return False
        tally.remember(inspection.inspection_id)
        self.inspections += 1
        tally.late += arrival == "late"
        tally.decisions[inspection.decision] += 1
        words = (inspection.decision, inspection.label, inspection.sample_id, inspection.reason)
        tally.last = " ".join(word[:_LONGEST_TEXT] for word in words if word)[:_LONGEST_TEXT]
        return True

    def _epoch_of(self, tally: StationTally, inspection: Inspection) -> Sequences:
        epoch = tally.epochs.get(inspection.station_epoch)
        if epoch is None:
            epoch = tally.epochs[inspection.station_epoch] = Sequences(inspection.sequence)
            if len(tally.epochs) > _EPOCHS:
                _, forgotten = tally.epochs.popitem(last=False)
                tally.missing_before += forgotten.missing
        return epoch


def message_from(topic: str, payload: bytes) -> tuple[StationId, Message]:
    """Read one message, and whose topic it is on. Raises UnreadableMessage, never anything else."""
    place = station_and_kind(topic)
    if place is None:
        raise UnreadableMessage(f"not a topic of ours: {topic[:100]!r}")
    station, kind = place
    most = LARGEST_PICTURE_BYTES if kind == "picture" else LARGEST_PAYLOAD_BYTES
    if len(payload) > most:
        raise UnreadableMessage(f"{len(payload)} bytes of {kind}, more than {most}")
    message: Message = decode(payload, KIND_TYPES[kind])
    if not isinstance(message, Command) and message.station != station:
        raise UnreadableMessage(f"sent by {message.station} on the topic of {station}"[:200])
    return station, message


def verdict_text(inspection: Inspection) -> str:
    """Write a verdict in a few words."""
    words = [inspection.sample_id, inspection.decision, inspection.label]
    if inspection.anomaly_score is not None:
        words.append(f"{inspection.anomaly_score:.3f} (threshold {inspection.threshold:.3f})")
    if inspection.reason:
        words.append(f"[{inspection.reason}]")
    return " ".join(word for word in words if word)
