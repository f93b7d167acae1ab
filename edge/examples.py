"""One station's day in messages: an example of every kind, for the schemas and for newcomers."""

from __future__ import annotations

from base64 import b64decode
from typing import NamedTuple

from edge.messages import (
    Command,
    Health,
    Inspection,
    InspectorHealth,
    MachineHealth,
    Message,
    Percentiles,
    Picture,
    Presence,
    PublisherHealth,
    Timings,
)
from edge.topics import StationId

STATION = StationId("plant-1", "machining", "line-3", "spindle-check")
EPOCH = "4f0c5a1e-6d1b-4f57-9a3e-2b8d7c1f0e55"
_BUNDLE = "9f2c4e1ab0d37568" * 4
_ENGINE = "onnxruntime 1.20 cpu int8"
_GREY_DOT = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


class Example(NamedTuple):
    """One message, and what it is an example of."""

    name: str
    summary: str
    message: Message


_PASSED = Inspection(
    inspection_id=f"{EPOCH}-41",
    station=STATION,
    station_epoch=EPOCH,
    sequence=41,
    sample_id="p0041",
    part_id="SN-20260302-0041",
    captured_at="2026-03-02T06:00:00.250000Z",
    inspected_at="2026-03-02T06:00:00.268311Z",
    decision="pass",
    label="good",
    anomaly_score=0.12,
    threshold=0.5,
    class_scores={"good": 0.97, "scratch": 0.02, "dent": 0.01},
    modalities=("image", "sensor"),
    reason="",
    bundle_digest=_BUNDLE,
    engine=_ENGINE,
    timings=Timings(prepare_ms=1.1, infer_ms=11.8, total_ms=13.4, wait_ms=0.3),
    source="main",
)
_FAILED = Inspection(
    inspection_id=f"{EPOCH}-42",
    station=STATION,
    station_epoch=EPOCH,
    sequence=42,
    sample_id="p0042",
    part_id="SN-20260302-0042",
    captured_at="2026-03-02T06:00:01.250000Z",
    inspected_at="2026-03-02T06:00:01.269004Z",
    decision="fail",
    label="scratch",
    anomaly_score=0.91,
    threshold=0.5,
    class_scores={"good": 0.06, "scratch": 0.9, "dent": 0.04},
    modalities=("image", "sensor"),
    reason="",
    bundle_digest=_BUNDLE,
    engine=_ENGINE,
    timings=Timings(prepare_ms=1.0, infer_ms=11.9, total_ms=13.5, wait_ms=0.3),
    source="main",
)
_INVALID = Inspection(
    inspection_id=f"{EPOCH}-43",
    station=STATION,
    station_epoch=EPOCH,
    sequence=43,
    sample_id="p0043",
    part_id="SN-20260302-0043",
    captured_at=None,
    inspected_at="2026-03-02T06:00:02.251118Z",
    decision="invalid",
    label="",
    anomaly_score=None,
    threshold=0.5,
    class_scores={},
    modalities=(),
    reason="frame unreadable: the file is cut short",
    bundle_digest=_BUNDLE,
    engine=_ENGINE,
    timings=Timings(prepare_ms=0.0, infer_ms=0.0, total_ms=0.2),
    source="main",
)
_HEALTH = Health(
    station=STATION,
    station_epoch=EPOCH,
    sent_at="2026-03-02T06:00:05.000Z",
    outbox_depth=2,
    counters={"dropped_pass": 0, "invalid": 1, "fail": 1, "pass": 41},
    inspector=InspectorHealth(
        state="ready",
        sources={"main": "playing"},
        engine=_ENGINE,
        bundle_digest=_BUNDLE,
        parts_per_second=1.0,
        latency=Percentiles(13.4, 13.9, 15.2, 16.0),
        durable=Percentiles(14.0, 14.6, 16.1, 17.2),
        queue_room=8,
        last_inspection_at="2026-03-02T06:00:02.251118Z",
    ),
    publisher=PublisherHealth(state="connected", since="2026-03-02T05:59:20.114Z", acknowledged=41),
    machine=MachineHealth(
        read_from="sysfs",
        module="NVIDIA Jetson Orin NX",
        temperatures_celsius={"cpu-thermal": 51.5, "gpu-thermal": 49.0},
        gpu_load_percent=37.0,
        memory_used_bytes=2_147_483_648,
        memory_total_bytes=16_508_907_520,
        throttled=False,
        uptime_s=86_400.0,
    ),
)
_PICTURE = Picture(
    station=STATION,
    inspection_id=_FAILED.inspection_id,
    shows="heat_map",
    request_id="shift-2-17",
    media_type="image/png",
    width=1,
    height=1,
    data=_GREY_DOT,
)
_NO_PICTURE = Picture(
    station=STATION,
    inspection_id=_PASSED.inspection_id,
    shows="image",
    request_id="shift-2-18",
    reason="not kept: a plain pass",
)
_ONLINE = Presence(station=STATION, state="online", since="2026-03-02T05:59:20.114Z")
_VANISHED = Presence(station=STATION, state="offline")
_ASKED = Command(request_id="shift-2-17", inspection_id=_FAILED.inspection_id, want=("heat_map",))

EXAMPLES: dict[str, tuple[Example, ...]] = {
    "inspection": (
        Example("passed", "A good part.", _PASSED),
        Example("failed", "A scratched part.", _FAILED),
        Example("invalid", "A part that could not be judged.", _INVALID),
    ),
    "presence": (
        Example("online", "The publisher is connected.", _ONLINE),
        Example("vanished", "The last will: the connection ended without a word.", _VANISHED),
    ),
    "health": (Example("ready", "All is well.", _HEALTH),),
    "picture": (
        Example("answer", "A heat map that was asked for.", _PICTURE),
        Example("none", "There is none, and why.", _NO_PICTURE),
    ),
    "command": (Example("ask", "Ask for one heat map.", _ASKED),),
}
