"""What a station says, as JSON. Field names, units and meanings are the contract with the plant.

Messages carry `schema`; a consumer refuses a number it does not know. `station_epoch` names one
life of a station's outbox: `sequence` counts from 1 without a gap inside one epoch, so a consumer
sees what is missing (a gap) and what came twice (the same `inspection_id` again). Order is that of
`sequence`, never that of a clock: a station's clock may be wrong, or jump. Times are ISO 8601 in
UTC. Unknown fields are ignored on reading, so that fields can be added within a schema.

A field's meaning stands beside its type; `edge schema` writes both into JSON Schema and AsyncAPI.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from edge.topics import StationId

SCHEMA = 1
LONGEST_NAME = 200  # characters of an id: ours have 36 and some digits
LARGEST_EXACT = (1 << 53) - 1  # integers that JSON readers everywhere keep exact


def means(text: str) -> msgspec.Meta:
    """Say what a field means."""
    return msgspec.Meta(description=text)


Name = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_NAME)]
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_EXACT)]
_UTC = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?(Z|[+]00:00)$"
Utc = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time", "pattern": _UTC})]
SchemaNumber = Annotated[
    int,
    msgspec.Meta(
        description="Version of the message's layout; refuse one that you do not know.",
        extra_json_schema={"const": SCHEMA},
    ),
]
Inspected = Annotated[Name, means("Unique for ever: de-duplicate by this.")]
Epoch = Annotated[
    str,
    msgspec.Meta(
        max_length=LONGEST_NAME,
        description="One life of the station's outbox; `sequence` counts within it.",
    ),
]
Sent = Annotated[StationId, means("Where the station stands: the levels of the topic.")]
Drift = Annotated[
    tuple[str, ...], means("What is unlike the bundle's reference, by name; no part of a verdict.")
]


class Timings(msgspec.Struct, frozen=True):
    """Milliseconds that one inspection spent in each room of the device."""

    prepare_ms: Annotated[float, means("Pairing with the readings, crop, resize and copy.")]
    infer_ms: Annotated[float, means("The model's time; of a batch, the whole batch's.")]
    total_ms: Annotated[float, means("From the start of the work on it to the verdict.")]
    wait_ms: Annotated[float, means("From the frame in memory to the start of the work on it.")] = (
        0.0
    )


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """One part's verdict with its identity and timings."""

    inspection_id: Inspected
    station: Sent
    station_epoch: Epoch
    sequence: Annotated[
        int,
        msgspec.Meta(
            ge=1,
            le=LARGEST_EXACT,
            description="Counts from 1 within `station_epoch`: a gap is a loss.",
        ),
    ]
    sample_id: Annotated[str, means("The sample that was judged.")]
    part_id: Annotated[str, means("The part that the sample shows; empty where nothing names it.")]
    captured_at: Annotated[
        Utc | None, means("When the frame was taken, in UTC; null where nothing tells.")
    ]
    inspected_at: Annotated[Utc, means("When the verdict was reached, in UTC.")]
    decision: Annotated[
        Literal["pass", "fail", "invalid"],
        means("`invalid`: the sample could not be judged; `reason` says why."),
    ]
    label: Annotated[
        str, means("The defect class it looks most like; of a pass, the normal class.")
    ]
    anomaly_score: Annotated[
        float | None, means("0..1, fail at or above `threshold`; null where it was invalid.")
    ]
    threshold: Annotated[float, means("The one that this sample was held against.")]
    class_scores: Annotated[dict[str, float], means("0..1 by class, together 1.")]
    modalities: Annotated[
        tuple[str, ...], means("Which of `image` and `sensor` were there to judge.")
    ]
    reason: Annotated[str, means("Why it is invalid, or what was unusual; empty as a rule.")]
    bundle_digest: Annotated[str, means("SHA-256 of the bundle's manifest: which model judged.")]
    engine: Annotated[str, means("What ran the model.")]
    timings: Timings
    source: Annotated[str, means("Which of the station's sources took the frame.")] = ""
    triggered: Annotated[bool, means("False: a free-running frame that no part asked for.")] = True
    drift: Drift = ()
    schema: SchemaNumber = SCHEMA


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """Retained: whether the station's publisher is connected. `offline` is also its last will."""

    station: Sent
    state: Annotated[
        Literal["online", "offline"],
        means("`offline` comes from the broker too, when the station vanished."),
    ]
    since: Annotated[
        Utc | None,
        means("When it said so, in UTC; null in the last will, and until its clock is set."),
    ] = None
    schema: SchemaNumber = SCHEMA


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds over the last minute."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


class InspectorHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How the loop is doing."""

    state: Literal["starting", "ready", "degraded", "failed", "stopped"]
    reason: Annotated[str, means("Why it is not `ready`.")] = ""
    sources: Annotated[
        dict[str, str], means("By name: `playing`, `ended`, or what is wrong with it.")
    ] = {}
    engine: Annotated[str, means("What runs the model.")] = ""
    bundle_digest: Annotated[str, means("SHA-256 of the bundle's manifest.")] = ""
    asked_parts_per_second: Annotated[
        float | None, means("Null where no source states a rate.")
    ] = None
    parts_per_second: Annotated[float, means("Inspected, over the last minute.")] = 0.0
    latency: Annotated[Percentiles | None, means("From frame in memory to verdict.")] = None
    durable: Annotated[Percentiles | None, means("From frame in memory to record on disk.")] = None
    queue_depth: Annotated[Count, means("Frames that wait.")] = 0
    queue_room: Annotated[Count, means("Frames that may wait.")] = 0
    drift: Drift = ()
    last_inspection_at: Annotated[Utc | None, means("In UTC; null where there was none yet.")] = (
        None
    )


class PublisherHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How the way to the broker is doing."""

    state: Literal["connected", "away", "stopped"]
    reason: Annotated[str, means("Why it is away, or what holds it up.")] = ""
    since: Annotated[Utc | None, means("When it entered this state, in UTC.")] = None
    acknowledged: Annotated[Count, means("Sequence up to which the broker has everything.")] = 0


class MachineHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What the device's own sensors say. A field is null or empty where nothing tells it."""

    read_from: Annotated[str, means("`jtop` or `sysfs`.")]
    reason: Annotated[str, means("Why not jtop though asked for, or what does not answer.")] = ""
    module: Annotated[str | None, means("Such as NVIDIA Jetson AGX Orin.")] = None
    power_mode: str | None = None
    temperatures_celsius: dict[str, float] = {}
    power_watts: dict[str, float] = {}
    clocks_mhz: dict[str, float] = {}
    gpu_load_percent: float | None = None
    cpu_load_percent: float | None = None
    memory_used_bytes: Count | None = None
    memory_total_bytes: Count | None = None
    disk_free_bytes: Annotated[Count | None, means("Of the outbox's disk.")] = None
    disk_total_bytes: Annotated[Count | None, means("Of the outbox's disk.")] = None
    network_sent_bytes: Annotated[
        Count | None, means("Since boot, all interfaces but loopback.")
    ] = None
    network_received_bytes: Annotated[
        Count | None, means("Since boot, all interfaces but loopback.")
    ] = None
    throttled: Annotated[bool | None, means("Whether the module runs slower than set.")] = None
    throttled_by: Annotated[tuple[str, ...], means("What slows it, by name.")] = ()
    uptime_s: Annotated[float | None, means("Seconds since boot.")] = None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What the station knows of itself. Counters grow within one epoch."""

    station: Sent
    station_epoch: Epoch
    sent_at: Annotated[Utc, means("In UTC.")]
    outbox_depth: Annotated[Count, means("Inspections that wait for the broker.")]
    counters: Annotated[
        dict[str, Count],
        means("What was counted, every loss among it, by name; one that never rose is left out."),
    ]
    inspector: Annotated[InspectorHealth | None, means("Null where it gives no sign of life.")] = (
        None
    )
    publisher: PublisherHealth | None = None
    machine: Annotated[MachineHealth | None, means("Null where no monitor runs.")] = None
    schema: SchemaNumber = SCHEMA


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """One kept picture, sent by rule or in answer to a `Command`. `data` is base64 in JSON."""

    station: Sent
    inspection_id: Annotated[Name, means("The inspection that it belongs to.")]
    shows: Literal["image", "heat_map"]
    request_id: Annotated[
        str, msgspec.Meta(max_length=LONGEST_NAME, description="Empty where a rule sent it.")
    ] = ""
    media_type: Annotated[str, means("Such as image/jpeg; empty where there is no picture.")] = ""
    width: Annotated[Count, means("Pixels.")] = 0
    height: Annotated[Count, means("Pixels.")] = 0
    data: Annotated[bytes, means("The file's bytes; empty where there is no picture.")] = b""
    reason: Annotated[str, means("Why there is no picture, or why it was made smaller.")] = ""
    schema: SchemaNumber = SCHEMA


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer asks of a station: the pictures that it kept of one inspection."""

    request_id: Annotated[Name, means("Your choice; it comes back with each answer.")]
    inspection_id: Annotated[Name, means("The inspection whose pictures are asked for.")]
    want: tuple[Literal["image", "heat_map"], ...] = ("image", "heat_map")
    schema: SchemaNumber = SCHEMA


Message = Inspection | Presence | Health | Picture | Command
M = TypeVar("M", bound=Message)
KIND_TYPES: dict[str, type[Message]] = {
    "inspection": Inspection,
    "presence": Presence,
    "health": Health,
    "picture": Picture,
    "command": Command,
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
