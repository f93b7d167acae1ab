"""The station file: one TOML that says who a station is, what it watches and where it reports.

All agents read the same file, so that they cannot disagree on the outbox. Relative paths are
relative to the station file, not to the folder a person happens to stand in.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge.config import struct_from_toml
from edge.errors import InputError
from edge.topics import StationId

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
PortOrNone = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_SOURCE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
# Keys of a source that mean nothing for the other kinds.
_RECORDING_ONLY = ("split", "parts_per_second", "repeat")
_CAMERA_ONLY = (
    *("width", "height", "frames_per_second", "delay_ms", "stalled_after_s"),
    *("sensor_gstreamer", "sensor_scale"),
)


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the station watches. One of `recording`, `v4l2` and `gstreamer` gives the frames."""

    recording: str | None = None  # folder, played back at its rate
    v4l2: str | None = None  # a camera's device file, such as "/dev/video0"
    gstreamer: str | None = None  # a pipeline as text, without its sink; it must give video/x-raw
    # Of a recording.
    split: str | None = None  # None: every sample of the recording
    parts_per_second: Positive | None = None  # None: the recording's own pace
    repeat: bool = False  # start again at the end, for ever
    # Of a camera or a pipeline.
    width: Count | None = None  # pixels; None: what the camera gives by default. A V4L2 camera
    height: Count | None = None  # must have that mode; a pipeline's frames are scaled to it
    # A pipeline's surplus frames are left out, and a lower rate is reported. Leave it out for a
    # camera that waits for triggers.
    frames_per_second: Positive | None = None
    delay_ms: NotNegative = 0.0  # from exposure to the frame in memory, taken off its time stamp
    stalled_after_s: Positive = 5.0  # no frame or reading for so long is a failure; a camera that
    # waits for triggers needs the longest pause of the line
    # The sensor beside a camera or a pipeline: a pipeline that gives audio/x-raw, one channel of
    # it for each channel of the model, in the model's order; GStreamer resamples another rate.
    sensor_gstreamer: str | None = None
    sensor_scale: tuple[float, ...] | None = None  # physical unit per full scale, by channel
    # Frame to window. None: a quarter of the part period, or 10 ms where no rate is stated.
    tolerance_ms: Positive | None = None
    triggered: bool = True  # False: free-running frames, the first to go where time is short


class Loop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the inspector spends its time."""

    queue: Count = 8  # frames that may wait to be inspected, all sources together
    deadline_ms: NotNegative = 5.0  # how long one waits for a batch to fill; batch 1: no wait
    budget_ms: Positive = 100.0  # frame in memory to record on disk; above it is `over_budget`


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bundle, and what runs it."""

    bundle: str  # folder
    # Which of the bundle's ONNX files; None: the one that `edge export` chose for the device.
    form: Literal["int8", "fp16", "int4-weights", "fp32"] | None = None
    provider: Literal["cpu", "cuda", "tensorrt", "tensorrt_rtx"] = "cpu"
    plan: str | None = None  # of `edge build`; the providers of TensorRT run it, no other does
    cuda_graph: bool = True  # capture a run once and replay it; on the CPU it means nothing
    threads: Count | None = None  # None: one core fewer than this process may use


class OutboxLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where inspections wait for the broker, and how many may."""

    path: str = "outbox.sqlite"
    max_rows: Count = 500_000
    # Of pages on disk, SQLite's own included; the journal on top.
    max_bytes: Annotated[int, msgspec.Meta(ge=1 << 20)] = 512 << 20


class Pictures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which pictures are kept beside the outbox, for how long, and which of them go out."""

    max_bytes: Annotated[int, msgspec.Meta(ge=0)] = 2 << 30  # 0: none is kept
    near_threshold: NotNegative = 0.05  # kept where the score is this close to the threshold
    share_of_passes: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01  # of plain passes, kept
    publish: Literal["never", "fail"] = "never"  # by rule; a `Command` is answered either way
    max_message_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 256 << 10  # larger: made smaller


class Broker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The MQTT 5 broker that the publisher sends to."""

    host: str
    port: Port = 1883
    username: str | None = None
    password_file: str | None = None  # the password is the file's first line
    keepalive_s: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 20
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20  # sent and not yet acknowledged
    health_every_s: Positive = 5.0
    max_messages_per_second: Positive | None = None  # None: as fast as the broker acknowledges
    # After a lost connection, and after a restart of ours, what was acknowledged in the last so
    # many seconds before the broker was last heard is sent again: killed, or its power gone, it
    # may have forgotten it. Mosquitto: its autosave_interval and two seconds. Consumers drop by id
    # what they have. An idle station hears the broker at each keepalive only.
    resend_s: NotNegative = 0.0
    # TLS, where `ca_file` is given; with `certificate_file` and `key_file` the broker may also
    # check who we are (mutual TLS). Port 8883 is the usual one.
    ca_file: str | None = None  # PEM: who may have signed the broker's certificate
    certificate_file: str | None = None  # PEM
    key_file: str | None = None  # PEM
    key_password_file: str | None = None  # the password is the file's first line


class Monitor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the monitor reads, how often, and where Prometheus finds it."""

    every_s: Positive = 5.0
    address: str = "127.0.0.1"  # where the metrics are served
    port: PortOrNone | None = 9109  # 0 in the file, None once read: no Prometheus endpoint
    jtop: bool = False  # jetson-stats (AGPL-3.0, extra `health`) instead of sysfs


class StationFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One station, as a person wrote it."""

    station: StationId
    model: Model
    broker: Broker
    source: Source | None = None  # one source; or
    sources: dict[str, Source] = {}  # several, by name: [sources.left], [sources.right]
    loop: Loop = Loop()
    outbox: OutboxLimits = OutboxLimits()
    pictures: Pictures = Pictures()
    monitor: Monitor = Monitor()

    def all_sources(self) -> dict[str, Source]:
        """Every source by name; the only one of a `[source]` table is called "main"."""
        return self.sources if self.source is None else {"main": self.source}


def station_from_toml(path: Path) -> StationFile:
    """Read a station file; its paths come back absolute. Raises InputError."""
    station = struct_from_toml(path, StationFile)
    _refuse_contradictions(path, station)
    folder = path.resolve().parent

    def absolute(name: str | None) -> str | None:
        return None if name is None else str(folder / name)

    replace = msgspec.structs.replace
    broker = station.broker
    return replace(
        station,
        source=None,
        sources={
            name: replace(source, recording=absolute(source.recording))
            for name, source in station.all_sources().items()
        },
        model=replace(
            station.model,
            bundle=str(folder / station.model.bundle),
            plan=absolute(station.model.plan),
        ),
        outbox=replace(station.outbox, path=str(folder / station.outbox.path)),
        monitor=replace(station.monitor, port=station.monitor.port or None),
        broker=replace(
            broker,
            password_file=absolute(broker.password_file),
            ca_file=absolute(broker.ca_file),
            certificate_file=absolute(broker.certificate_file),
            key_file=absolute(broker.key_file),
            key_password_file=absolute(broker.key_password_file),
        ),
    )


def table_of(source_name: str) -> str:
    """Return the table that a source stands in, as errors name it."""
    return "source" if source_name == "main" else f"sources.{source_name}"


def _refuse_contradictions(path: Path, station: StationFile) -> None:
    """Raise InputError where two keys, each right by itself, do not go together."""
    if (station.source is None) == (not station.sources):
        raise InputError(
            where=path,
            expected="one [source], or several named ones ([sources.left], [sources.right])",
            found="both" if station.sources else "none",
            do="Keep [source] for a single one; give each of several a table of its own.",
        )
    for name, source in station.all_sources().items():
        if not _SOURCE_NAME.fullmatch(name):
            raise InputError(
                where=path,
                expected="sources named by letters, digits, '-' and '_'",
                found=f"[sources.{name!r}]",
                do="Rename it: the name stands in sample ids and in Health.",
            )
        _refuse_source(path, "source" if station.source else f"sources.{name}", source)
    broker = station.broker
    for given, needed in (
        ("password_file", "username"),
        ("certificate_file", "key_file"),
        ("key_file", "certificate_file"),
        ("certificate_file", "ca_file"),
        ("key_password_file", "key_file"),
    ):
        if getattr(broker, given) is not None and getattr(broker, needed) is None:
            raise InputError(
                where=path,
                expected=f"broker.{needed} beside broker.{given}",
                found=f"broker.{given} alone",
                do=f"Add broker.{needed}, or remove broker.{given}.",
            )


def _refuse_source(path: Path, table: str, source: Source) -> None:
    kinds = [k for k in ("recording", "v4l2", "gstreamer") if getattr(source, k) is not None]
    if len(kinds) != 1:
        raise InputError(
            where=path,
            expected=f"exactly one of {table}.recording, {table}.v4l2 and {table}.gstreamer",
            found=" and ".join(kinds) or "none",
            do="Say where the frames come from, once.",
        )
    foreign = _CAMERA_ONLY if kinds == ["recording"] else _RECORDING_ONLY
    defaults = Source()
    for key in foreign:
        if getattr(source, key) != getattr(defaults, key):
            raise InputError(
                where=path,
                expected=f"keys of a source with {table}.{kinds[0]}",
                found=f"{table}.{key}",
                do=f"Remove {table}.{key}: it means nothing here.",
            )
    if source.sensor_scale is not None and source.sensor_gstreamer is None:
        raise InputError(
            where=path,
            expected=f"{table}.sensor_gstreamer beside {table}.sensor_scale",
            found=f"{table}.sensor_scale alone",
            do=f"Add {table}.sensor_gstreamer, or remove {table}.sensor_scale.",
        )


def password_from(path: str | None) -> str | None:
    """Return the first line of a password file; None where no file is named."""
    if path is None:
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "bytes that are not UTF-8"
        raise InputError(
            where=path,
            expected="a file whose first line is the broker's password",
            found=str(reason),
            do="Write the password there, readable by this user alone (chmod 600).",
        ) from None
    if not lines or not lines[0]:
        raise InputError(
            where=path,
            expected="a password on the first line",
            found="an empty line",
            do="Write the password there.",
        )
    return lines[0]
