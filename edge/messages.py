"""What a station says, as JSON. Field names, units and meanings are the contract with the plant.

Messages carry `schema`; a consumer refuses a number it does not know. `station_epoch` names one
life of a station's outbox: `sequence` counts from 1 without a gap inside one epoch, so a consumer
sees what is missing (a gap) and what came twice (the same `inspection_id` again). Times are ISO
8601 in UTC. Unknown fields are ignored on reading, so that fields can be added within a schema.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec

from edge.topics import StationId

SCHEMA = 1


class Timings(msgspec.Struct, frozen=True):
    """Milliseconds that one inspection spent in each room of the device."""

    prepare_ms: float
    infer_ms: float
    total_ms: float  # from the paired sample to the verdict


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """One part's verdict with its identity and timings."""

    inspection_id: str  # unique for ever: de-duplicate by this
    station: StationId
    station_epoch: str
    sequence: int
    sample_id: str
    part_id: str
    captured_at: str | None
    inspected_at: str
    decision: Literal["pass", "fail", "invalid"]
    label: str
    anomaly_score: float | None  # None where the sample was invalid
    threshold: float
    class_scores: dict[str, float]
    modalities: tuple[str, ...]  # which of image and sensor were there to judge
    reason: str
    bundle_digest: str
    engine: str
    timings: Timings
    schema: int = SCHEMA


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """Retained: whether the station's publisher is connected. `offline` is also its last will."""

    station: StationId
    state: Literal["online", "offline"]
    since: str | None = None
    schema: int = SCHEMA


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What the station knows about its own losses. Counters grow within one epoch."""

    station: StationId
    station_epoch: str
    sent_at: str
    outbox_depth: int
    counters: dict[str, int]
    schema: int = SCHEMA


Message = Inspection | Presence | Health
M = TypeVar("M", Inspection, Presence, Health)
KIND_TYPES: dict[str, type[Inspection] | type[Presence] | type[Health]] = {
    "inspection": Inspection,
    "presence": Presence,
    "health": Health,
}


class UnreadableMessage(ValueError):
    """Bytes that are not a message of a schema this version knows."""


def encode(message: Message) -> bytes:
    """Return the message as UTF-8 JSON."""
    return msgspec.json.encode(message)


def decode(payload: bytes, kind: type[M]) -> M:
    """Read one message strictly by type. Raises UnreadableMessage, never anything else."""
    try:
        schema = msgspec.json.decode(payload, type=dict[str, msgspec.Raw]).get("schema")
        if schema is None or bytes(schema) != str(SCHEMA).encode():
            found = "none" if schema is None else bytes(schema)[:20].decode(errors="replace")
            raise UnreadableMessage(f"message schema {SCHEMA} expected, found {found}")
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, RecursionError) as error:
        if isinstance(error, UnreadableMessage):
            raise
        raise UnreadableMessage(str(error)) from None
