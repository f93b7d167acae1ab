"""The station file: one TOML that says who a station is, what it watches and where it reports.

Both agents read the same file, so that they cannot disagree on the outbox. Relative paths are
relative to the station file, not to the folder a person happens to stand in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from edge.config import struct_from_toml
from edge.errors import InputError
from edge.topics import StationId

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the station watches: a recording, played back at its rate."""

    recording: str  # folder
    split: str | None = None  # None: every sample of the recording
    parts_per_second: Positive | None = None  # None: the recording's own pace
    repeat: bool = False  # start again at the end, for ever
    tolerance_ms: Positive | None = None  # frame to window; None: a quarter of the part period


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bundle, and what runs it."""

    bundle: str  # folder
    form: str = "int8"  # "int8" or "fp32": which of the bundle's ONNX files
    provider: str = "cpu"
    threads: Count | None = None  # None: one core fewer than this process may use


class OutboxLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where inspections wait for the broker, and how many may."""

    path: str = "outbox.sqlite"
    max_rows: Count = 500_000
    max_bytes: Count = 512 << 20  # of payload; SQLite adds about a tenth


class Broker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The MQTT 5 broker that the publisher sends to."""

    host: str
    port: Port = 1883
    username: str | None = None
    password_file: str | None = None  # the password is the file's first line
    keepalive_s: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 20
    in_flight: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20  # sent and not yet acknowledged
    health_every_s: Positive = 5.0


class StationFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One station, as a person wrote it."""

    station: StationId
    source: Source
    model: Model
    broker: Broker
    outbox: OutboxLimits = OutboxLimits()


def station_from_toml(path: Path) -> StationFile:
    """Read a station file; its paths come back absolute. Raises InputError."""
    station = struct_from_toml(path, StationFile)
    if station.broker.username is None and station.broker.password_file is not None:
        raise InputError(
            where=path,
            expected="broker.username beside broker.password_file",
            found="a password without a user",
            do="Add the user's name, or remove the password file.",
        )
    folder = path.resolve().parent
    password_file = station.broker.password_file
    replace = msgspec.structs.replace
    return replace(
        station,
        source=replace(station.source, recording=str(folder / station.source.recording)),
        model=replace(station.model, bundle=str(folder / station.model.bundle)),
        outbox=replace(station.outbox, path=str(folder / station.outbox.path)),
        broker=replace(
            station.broker,
            password_file=None if password_file is None else str(folder / password_file),
        ),
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
