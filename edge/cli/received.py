"""What stations report, shown: JSON lines, plain lines, or a live table of stations."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.table import Table

    from device_agents.consumer.ledger import Ledger, StationTally
    from edge.messages import Message

_REDRAW_S = 0.25
_ROWS = 30  # stations on the screen
_WIDE = 110  # columns of a console that takes the whole table
_STATION_WIDTH = 16  # at least; a longer name goes on in the next line
_COUNTERS = 40  # in one line


class Display(Protocol):
    """Something that shows messages."""

    def show(self, topic: str, message: Message, saved: Path | None) -> None:
        """Take a message that arrived for the first time; `saved` is the picture's file."""

    def refresh(self) -> None:
        """Take a turn, often, whether or not something arrived."""


class JsonLines:
    """One message a line, flushed at once: a reader may act on it before it is acknowledged."""

    def show(self, topic: str, message: Message, saved: Path | None) -> None:
        """Print the message as it was sent, with its kind in front; a picture without its data."""
        import msgspec

        from edge.messages import Command, Picture
        from edge.topics import station_and_kind

        place = station_and_kind(topic)
        assert place is not None, "the ledger takes only topics of ours"
        line: dict[str, Any] = {"kind": place[1]}
        if isinstance(message, Command):  # its topic alone says to whom it goes
            line["station"] = msgspec.to_builtins(place[0])
        if isinstance(message, Picture):
            line["data_bytes"] = len(message.data)
            line["file"] = None if saved is None else str(saved)
            message = msgspec.structs.replace(message, data=b"")
        line |= msgspec.to_builtins(message)
        print(msgspec.json.encode(line).decode(), flush=True)

    def refresh(self) -> None:
        """Nothing waits to be drawn."""


class PlainLines:
    """One line per message, for people and log files."""

    def show(self, topic: str, message: Message, saved: Path | None) -> None:
        """Print the message in words."""
        from edge.topics import station_and_kind

        place = station_and_kind(topic)
        assert place is not None, "the ledger takes only topics of ours"
        print(printable(f"{place[0]}  {_words_of(message, saved)}"), flush=True)

    def refresh(self) -> None:
        """Nothing waits to be drawn."""


def _words_of(message: Message, saved: Path | None) -> str:
    from device_agents.consumer.ledger import verdict_text
    from edge.messages import Health, Inspection, Picture, Presence

    if isinstance(message, Inspection):
        return f"#{message.sequence} {verdict_text(message)}"
    if isinstance(message, Presence):
        return message.state
    if isinstance(message, Health):
        counters = ", ".join(f"{k} {v}" for k, v in sorted(message.counters.items())[:_COUNTERS])
        return f"health: {message.outbox_depth} waiting; {counters}"
    if isinstance(message, Picture):
        size = f"{message.width}x{message.height}, {len(message.data)} bytes"
        words = [f"{message.shows} of {message.inspection_id}:", size if message.data else "none"]
        words += [f"[{message.reason}]"] * bool(message.reason)
        return " ".join([*words, *([] if saved is None else [f"-> {saved}"])])
    return f"is asked for {' and '.join(message.want)} of {message.inspection_id}"


class LiveTable:
    """A table on the terminal, one row per station."""

    def __init__(self, ledger: Ledger) -> None:
        from rich.live import Live

        self._ledger = ledger
        self._drawn_s = 0.0
        self._live = Live(auto_refresh=False)

    def __enter__(self) -> LiveTable:
        self._live.update(self._table())
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update(self._table(), refresh=True)
        self._live.stop()

    def show(self, topic: str, message: Message, saved: Path | None) -> None:
        """The ledger has it already."""

    def refresh(self) -> None:
        """Draw again, a few times a second at most."""
        if time.monotonic() - self._drawn_s > _REDRAW_S:
            self._drawn_s = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        return table_of(self._ledger, self._live.console.width)


def table_of(ledger: Ledger, width: int) -> Table:
    """Draw the stations for a console of `width` columns.

    On a narrow one the counts that the caption sums up, and the queue's depth, give way to the
    stations' names and decisions.
    """
    from rich.table import Table
    from rich.text import Text

    wide = width >= _WIDE
    counts = ["pass", "fail", "invalid", *(("twice", "missing", "waiting") if wide else ())]
    table = Table(title="stations", caption=summary_of(ledger))
    table.add_column("station", min_width=_STATION_WIDTH, overflow="fold")
    table.add_column("presence", no_wrap=True)
    for column in counts:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("last verdict")
    for tally in list(ledger.stations.values())[:_ROWS]:
        numbers: dict[str, object] = {**dict.fromkeys(counts[:3], 0), **tally.decisions}
        numbers |= {"twice": tally.duplicates, "missing": tally.missing}
        numbers["waiting"] = "?" if tally.waiting is None else tally.waiting
        table.add_row(
            # Text, not str: markup from the network stays text.
            Text(printable(str(tally.station))),
            Text(_presence_of(tally)),
            *(str(numbers[name]) for name in counts),
            # One line, by the cell and not by the column: rich shrinks such columns last of all.
            Text(printable(tally.last), no_wrap=True, overflow="ellipsis"),
        )
    return table


def _presence_of(tally: StationTally) -> str:
    """`online`, or what is wrong with the loop behind a publisher that is online."""
    troubled = tally.presence == "online" and tally.state in ("degraded", "failed", "stopped")
    return tally.state if troubled else tally.presence


def summary_of(ledger: Ledger) -> str:
    """Count everything in one line."""
    text = (
        f"{ledger.inspections} inspections of {len(ledger.stations)} stations; "
        f"{ledger.duplicates} came twice, {ledger.missing} missing, "
        f"{ledger.late} out of order, {ledger.foreign} payloads not understood"
    )
    if ledger.pictures:
        text += f", {ledger.pictures} pictures"
    return f"{text} (the last: {printable(ledger.last_foreign)})" if ledger.last_foreign else text


def printable(text: str) -> str:
    """Control characters from the network must not steer the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
