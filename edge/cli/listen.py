"""`edge listen`: show what stations report over MQTT, and count what came twice or is missing."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from edge.cli.replay import at_least_one

if TYPE_CHECKING:
    from rich.table import Table

    from device_agents.ledger import Ledger
    from device_agents.listener import Subscriber
    from edge.messages import Message

_REDRAW_S = 0.25
_ROWS = 30  # stations on the screen
_WIDE = 110  # columns of a console that takes the whole table
_STATION_WIDTH = 16  # at least; a longer name goes on in the next line
_DEFAULT_EXPIRY_S = 86_400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define `edge listen`."""
    parser.add_argument("--broker", required=True, metavar="mqtt://HOST:PORT")
    parser.add_argument("--username")
    parser.add_argument("--password-file", metavar="FILE", help="the password is its first line")
    parser.add_argument("--jsonl", action="store_true", help="one message a line, as JSON")
    parser.add_argument(
        "--count", type=at_least_one, metavar="N", help="end after N distinct inspections"
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="end after S seconds")
    parser.add_argument("--wait", action="store_true", help="wait for a broker that is not there")
    parser.add_argument(
        "--client-id",
        metavar="ID",
        help="a name of your own: the broker then keeps a queue for you while you are away",
    )
    parser.add_argument(
        "--session-expiry",
        type=int,
        metavar="S",
        help=f"how long it keeps the queue (default {_DEFAULT_EXPIRY_S} with --client-id)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Listen until Ctrl-C, --count or --timeout. Status 1: the time was up before the count."""
    from device_agents.ledger import Ledger
    from device_agents.listener import received_from
    from edge.cli.agent import log_to_stderr, stop_on_signals
    from edge.errors import AnswerIsNo

    subscriber = _subscriber_from(arguments)
    stop = stop_on_signals()
    ledger = Ledger()
    deadline = None if arguments.timeout is None else time.monotonic() + arguments.timeout
    with _display_for(arguments, ledger) as display:
        log_to_stderr()  # after the table is there: rich then prints the lines above it
        for received in received_from(subscriber, stop, wait_for_broker=arguments.wait):
            if received is not None:
                message = ledger.take(received.topic, received.payload)
                if message is not None:
                    display.show(message)
            display.refresh()
            has_all = arguments.count is not None and ledger.inspections >= arguments.count
            if has_all or (deadline is not None and time.monotonic() > deadline):
                stop.set()
    print(_summary(ledger), file=sys.stderr)
    if arguments.count is not None and ledger.inspections < arguments.count:
        raise AnswerIsNo(
            where=arguments.broker,
            expected=f"{arguments.count} inspections",
            found=f"{ledger.inspections} by the time it ended",
            do="Look whether the station's inspector and publisher run, or allow more --timeout.",
        )
    return 0


class Display(Protocol):
    """Something that shows messages."""

    def show(self, message: Message) -> None:
        """Take a message that arrived for the first time."""

    def refresh(self) -> None:
        """Take a turn, often, whether or not something arrived."""


class JsonLines:
    """One message a line, flushed at once: a reader may act on it before it is acknowledged."""

    def show(self, message: Message) -> None:
        """Print the message as it was sent, with its kind in front."""
        import msgspec

        kind = type(message).__name__.lower()
        line = {"kind": kind, **msgspec.to_builtins(message)}
        print(msgspec.json.encode(line).decode(), flush=True)

    def refresh(self) -> None:
        """Nothing waits to be drawn."""


class PlainLines:
    """One line per message, for people and log files."""

    def show(self, message: Message) -> None:
        """Print the message in words."""
        from device_agents.ledger import verdict_text
        from edge.messages import Inspection, Presence

        if isinstance(message, Inspection):
            text = f"#{message.sequence} {verdict_text(message)}"
        elif isinstance(message, Presence):
            text = message.state
        else:
            counters = ", ".join(f"{k} {v}" for k, v in sorted(message.counters.items())[:40])
            text = f"health: {message.outbox_depth} waiting; {counters}"
        print(_printable(f"{message.station}  {text}"), flush=True)

    def refresh(self) -> None:
        """Nothing waits to be drawn."""


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

    def show(self, message: Message) -> None:
        """The ledger has it already."""

    def refresh(self) -> None:
        """Draw again, a few times a second at most."""
        if time.monotonic() - self._drawn_s > _REDRAW_S:
            self._drawn_s = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        return table_of(self._ledger, self._live.console.width)


@contextlib.contextmanager
def _display_for(arguments: argparse.Namespace, ledger: Ledger) -> Iterator[Display]:
    if arguments.jsonl:
        yield JsonLines()
    elif sys.stdout.isatty():
        with LiveTable(ledger) as table:
            yield table
    else:
        yield PlainLines()


def _subscriber_from(arguments: argparse.Namespace) -> Subscriber:
    from device_agents.listener import Subscriber, broker_address_from
    from device_agents.station import password_from
    from edge.errors import InputError

    expiry_s = arguments.session_expiry
    if expiry_s and arguments.client_id is None:
        raise InputError(
            where="--session-expiry",
            expected="--client-id beside it",
            found="no client id",
            do="Choose a name that no other listener uses: the queue is kept under it.",
        )
    if expiry_s is None:
        expiry_s = _DEFAULT_EXPIRY_S if arguments.client_id is not None else 0
    password = password_from(arguments.password_file)
    broker = broker_address_from(arguments.broker, arguments.username, password)
    return Subscriber(broker, arguments.client_id, max(0, expiry_s))


def table_of(ledger: Ledger, width: int) -> Table:
    """Draw the stations for a console of `width` columns.

    On a narrow one the counts that the caption sums up, and the queue's depth, give way to the
    stations' names and decisions.
    """
    from rich.table import Table
    from rich.text import Text

    wide = width >= _WIDE
    counts = ["pass", "fail", "invalid", *(("twice", "missing", "waiting") if wide else ())]
    table = Table(title="stations", caption=_summary(ledger))
    table.add_column("station", min_width=_STATION_WIDTH, overflow="fold")
    table.add_column("presence", no_wrap=True)
    for column in counts:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("last verdict")
    for tally in list(ledger.stations.values())[:_ROWS]:
        numbers: dict[str, object] = {**dict.fromkeys(counts[:3], 0), **tally.decisions}
        numbers |= {"twice": tally.duplicates, "missing": tally.missing}
        numbers["waiting"] = "?" if tally.health is None else tally.health.outbox_depth
        table.add_row(
            # Text, not str: markup from the network stays text.
            Text(_printable(str(tally.station))),
            Text(_printable(tally.presence)),
            *(str(numbers[name]) for name in counts),
            # One line, by the cell and not by the column: rich shrinks such columns last of all.
            Text(_printable(tally.last), no_wrap=True, overflow="ellipsis"),
        )
    return table


def _summary(ledger: Ledger) -> str:
    text = (
        f"{ledger.inspections} inspections of {len(ledger.stations)} stations; "
        f"{ledger.duplicates} came twice, {ledger.missing} missing, "
        f"{ledger.late} out of order, {ledger.foreign} payloads not understood"
    )
    return f"{text} (the last: {_printable(ledger.last_foreign)})" if ledger.last_foreign else text


def _printable(text: str) -> str:
    """Control characters from the network must not steer the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
