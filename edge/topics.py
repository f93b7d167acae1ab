"""Where a station's messages go: MQTT topics on an ISA-95 path, versioned.

    orin-inspect/v1/<site>/<area>/<line>/<station>/inspection    one per part
    orin-inspect/v1/<site>/<area>/<line>/<station>/presence      online or offline, retained, will
    orin-inspect/v1/<site>/<area>/<line>/<station>/health        counters of loss and depth
    orin-inspect/v1/<site>/<area>/<line>/<station>/picture       a kept picture
    orin-inspect/v1/<site>/<area>/<line>/<station>/command       to the station: send a picture

A consumer may take this module and `edge.messages` alone: they need only msgspec.
"""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

import msgspec

ROOT = "orin-inspect/v1"
LONGEST_PATH = 200  # characters of site/area/line/station together


class Delivery(NamedTuple):
    """How messages of one kind travel."""

    qos: int
    retain: bool
    to_station: bool = False  # every other kind comes from it


DELIVERIES = {
    "inspection": Delivery(qos=1, retain=False),
    "presence": Delivery(qos=1, retain=True),
    "health": Delivery(qos=0, retain=False),
    "picture": Delivery(qos=1, retain=False),
    "command": Delivery(qos=1, retain=False, to_station=True),
}
DOCTOR = "doctor"  # the level on which `edge doctor` tries whether a station may publish
KINDS = tuple(DELIVERIES)

# MQTT 5, 1.5.4 and 4.7. Brokers close the connection on control characters and non-characters.
_FORBIDDEN = r"/+#\u0000-\u001f\u007f-\u009f\ufdd0-\ufdef\ufffe\uffff"
_LEVEL_PATTERN = f"^[^${_FORBIDDEN}][^{_FORBIDDEN}]*$"
_LEVEL = re.compile(rf"(?!\$)[^{_FORBIDDEN}\ud800-\udfff]+")
Level = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": _LEVEL_PATTERN})]


class StationId(msgspec.Struct, frozen=True):
    """Where a station stands. Each part is one topic level: not empty, without `/`, `+`, `#`."""

    site: Level
    area: Level
    line: Level
    station: Level

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            level = getattr(self, field)
            if _LEVEL.fullmatch(level) is None:
                raise ValueError(
                    f"{field} must be one MQTT topic level (not empty, no '/', '+', '#', control "
                    f"characters, nor a leading '$'), not {level[:LONGEST_PATH]!r}"
                )
        if len(str(self)) > LONGEST_PATH:
            raise ValueError(
                f"site, area, line and station must have {LONGEST_PATH} characters or fewer "
                f"together, not {len(str(self))}"
            )

    def __str__(self) -> str:
        return f"{self.site}/{self.area}/{self.line}/{self.station}"


def topic_of(station: StationId, kind: str) -> str:
    """Return the topic on which `station` sends messages of `kind`, or takes commands."""
    assert kind in KINDS, kind
    return f"{ROOT}/{station}/{kind}"


def filter_for(kind: str = "+") -> str:
    """Return the subscription that matches `kind` ("+": every kind) of every station."""
    return f"{ROOT}/+/+/+/+/{kind}"


def station_and_kind(topic: str) -> tuple[StationId, str] | None:
    """Read a topic back, or None when it is not one of ours."""
    levels = topic.split("/")
    if len(levels) != 7 or "/".join(levels[:2]) != ROOT or levels[6] not in KINDS:
        return None
    try:
        return StationId(*levels[2:6]), levels[6]
    except ValueError:
        return None
