"""Where a station's messages go: MQTT topics on an ISA-95 path, versioned.

    orin-inspect/v1/<site>/<area>/<line>/<station>/inspection    one per part, QoS 1
    orin-inspect/v1/<site>/<area>/<line>/<station>/presence      online or offline, retained, will
    orin-inspect/v1/<site>/<area>/<line>/<station>/health        counters of loss and depth

A consumer may take this module and `edge.messages` alone: they need only msgspec.
"""

from __future__ import annotations

import msgspec

ROOT = "orin-inspect/v1"
KINDS = ("inspection", "presence", "health")


class StationId(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a station stands. Each part is one topic level: not empty, without `/`, `+`, `#`."""

    site: str
    area: str
    line: str
    station: str

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            level = getattr(self, field)
            if not level or any(sign in level for sign in "/+#\0") or level.startswith("$"):
                raise ValueError(
                    f"{field} must be one MQTT topic level (not empty, no '/', '+', '#', NUL, "
                    f"nor a leading '$'), not {level!r}"
                )

    def __str__(self) -> str:
        return f"{self.site}/{self.area}/{self.line}/{self.station}"


def topic_of(station: StationId, kind: str) -> str:
    """Return the topic on which `station` sends messages of `kind`."""
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
