"""Health: what the station knows of itself, put together from what each agent says.

The monitor writes it beside the outbox, the publisher sends it. Where no monitor runs, the
publisher puts it together itself, by the same function, without the machine.
"""

from __future__ import annotations

import logging
import sqlite3
from datetime import datetime, timezone
from pathlib import Path

from device_agents.outbox.cursor import Cursor, read_cursor
from device_agents.outbox.reader import OutboxReader
from device_agents.station import StationFile
from edge.messages import Health, InspectorHealth, MachineHealth, PublisherHealth

log = logging.getLogger("health")


def health_of(  # noqa: PLR0913  one argument per agent that has a say
    station: StationFile,
    reader: OutboxReader | None,
    inspector: InspectorHealth | None,
    publisher: PublisherHealth | None,
    machine: MachineHealth | None,
    *,
    cursor: Cursor | None = None,
) -> Health:
    """Put a Health together. Never raises for what is wrong with the outbox.

    An outbox that is not there, or cannot be read now, gives the epoch "" with depth 0 and no
    counters: nobody may take its numbers for those of a life. `cursor` is the publisher's own,
    newer than its file; None reads the file.
    """
    epoch, depth, counters = "", 0, {}
    if reader is not None:
        try:
            cursor = cursor or read_cursor(Path(station.outbox.path), reader.epoch)
            depth = reader.depth_after(cursor.acknowledged)
            counters = {**reader.counters(), **cursor.counters}
            epoch = reader.epoch
        except sqlite3.Error as error:
            log.warning("the outbox cannot be read: %s", error)
            epoch, depth, counters = "", 0, {}
    return Health(
        station=station.station,
        station_epoch=epoch,
        sent_at=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        outbox_depth=depth,
        counters=counters,
        inspector=inspector,
        publisher=publisher,
        machine=machine,
    )
