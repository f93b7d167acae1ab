"""`edge listen`: show what stations report over MQTT, and count what came twice or is missing."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge.cli.numbers import at_least_one
from edge.cli.received import Display, JsonLines, LiveTable, PlainLines, summary_of
from edge.errors import AnswerIsNo, InputError

if TYPE_CHECKING:
    from device_agents.consumer.ledger import Ledger
    from device_agents.consumer.listener import Subscriber
    from device_agents.consumer.picture_folder import PictureFolder
    from device_agents.mqtt.address import BrokerAddress
    from device_agents.mqtt.link import Received
    from device_agents.mqtt.tls import Tls

_DEFAULT_EXPIRY_S = 86_400
_DEFAULT_PICTURES_BYTES = 1 << 30
_PORTS = {"mqtt": 1883, "mqtts": 8883}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define `edge listen`."""
    parser.add_argument("--broker", required=True, metavar="mqtt[s]://HOST:PORT")
    parser.add_argument("--username")
    parser.add_argument("--password-file", metavar="FILE", help="the password is its first line")
    parser.add_argument("--jsonl", action="store_true", help="one message a line, as JSON")
    parser.add_argument(
        "--count", type=at_least_one, metavar="N", help="end after N distinct inspections"
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="end after S seconds")
    parser.add_argument("--wait", action="store_true", help="wait for a broker that is not there")
    tls = parser.add_argument_group("TLS, with mqtts://")
    tls.add_argument("--ca", metavar="FILE", help="PEM: who signed the broker's certificate")
    tls.add_argument("--certificate", metavar="FILE", help="PEM, for brokers that ask who we are")
    tls.add_argument("--key", metavar="FILE", help="PEM, of --certificate")
    tls.add_argument("--key-password-file", metavar="FILE", help="its first line opens --key")
    away = parser.add_argument_group("while you are away")
    away.add_argument(
        "--client-id",
        metavar="ID",
        help="a name of your own: the broker then keeps a queue for you while you are away",
    )
    away.add_argument(
        "--session-expiry",
        type=int,
        metavar="S",
        help=f"how long it keeps the queue (default {_DEFAULT_EXPIRY_S} with --client-id)",
    )
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument("--pictures", type=Path, metavar="DIR", help="save them to files here")
    pictures.add_argument(
        "--pictures-bytes",
        type=at_least_one,
        default=_DEFAULT_PICTURES_BYTES,
        metavar="N",
        help="save no more than so many bytes (default 1 GiB)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Listen until Ctrl-C, --count or --timeout. Status 1: the time was up before the count."""
    from device_agents.consumer.ledger import Ledger
    from device_agents.consumer.listener import received_from
    from edge.cli.agent import log_to_stderr, stop_on_signals

    subscriber = _subscriber_from(arguments)
    pictures = _picture_folder_from(arguments)
    stop = stop_on_signals()
    ledger = Ledger()
    deadline = None if arguments.timeout is None else time.monotonic() + arguments.timeout
    with _display_for(arguments, ledger) as display:
        log_to_stderr()  # after the table is there: rich then prints the lines above it
        for received in received_from(subscriber, stop, wait_for_broker=arguments.wait):
            if received is not None:
                _take(received, ledger, display, pictures)
            display.refresh()
            has_all = arguments.count is not None and ledger.inspections >= arguments.count
            if has_all or (deadline is not None and time.monotonic() > deadline):
                stop.set()
    print(summary_of(ledger), file=sys.stderr)
    if pictures is not None:
        over = f", {pictures.over_limit} over --pictures-bytes" * bool(pictures.over_limit)
        print(f"{pictures.saved} pictures saved{over}", file=sys.stderr)
    if arguments.count is not None and ledger.inspections < arguments.count:
        raise AnswerIsNo(
            where=arguments.broker,
            expected=f"{arguments.count} inspections",
            found=f"{ledger.inspections} by the time it ended",
            do="Look whether the station's inspector and publisher run, or allow more --timeout.",
        )
    return 0


def _take(
    received: Received, ledger: Ledger, display: Display, pictures: PictureFolder | None
) -> None:
    from edge.messages import Picture

    message = ledger.take(received.topic, received.payload)
    if message is None:
        return
    saved = None
    if pictures is not None and isinstance(message, Picture):
        saved = pictures.save(message)
    display.show(received.topic, message, saved)


@contextlib.contextmanager
def _display_for(arguments: argparse.Namespace, ledger: Ledger) -> Iterator[Display]:
    if arguments.jsonl:
        yield JsonLines()
    elif sys.stdout.isatty():
        with LiveTable(ledger) as table:
            yield table
    else:
        yield PlainLines()


def _picture_folder_from(arguments: argparse.Namespace) -> PictureFolder | None:
    from device_agents.consumer.picture_folder import PictureFolder

    if arguments.pictures is None:
        return None
    return PictureFolder(arguments.pictures, arguments.pictures_bytes)


def _subscriber_from(arguments: argparse.Namespace) -> Subscriber:
    from device_agents.consumer.listener import Subscriber
    from device_agents.station import password_from

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
    key_password = password_from(arguments.key_password_file)
    tls = _tls_from(arguments.ca, arguments.certificate, arguments.key, key_password)
    broker = _broker_address_from(arguments.broker, arguments.username, password, tls)
    return Subscriber(broker, arguments.client_id, max(0, expiry_s))


def _tls_from(
    ca: str | None, certificate: str | None, key: str | None, key_password: str | None
) -> Tls | None:
    """Read the options --ca, --certificate and --key. Raises InputError where one lacks another."""
    from device_agents.mqtt.tls import Tls

    for option, given, needed, beside in (
        ("--certificate", certificate, "--key", key),
        ("--key", key, "--certificate", certificate),
        ("--certificate", certificate, "--ca", ca),
        ("--key-password-file", key_password, "--key", key),
    ):
        if given is not None and beside is None:
            raise InputError(
                where=option,
                expected=f"{needed} beside it",
                found=f"no {needed}",
                do=f"Add {needed} FILE, or leave {option} out.",
            )
    return None if ca is None else Tls(ca, certificate, key, key_password)


def _broker_address_from(
    url: str, username: str | None, password: str | None, tls: Tls | None = None
) -> BrokerAddress:
    """Read `mqtt://HOST[:PORT]`, or `mqtts://` with TLS.

    Raises InputError; a password does not belong in an address.
    """
    from device_agents.mqtt.address import BrokerAddress

    try:
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="mqtt")
        port = _PORTS.get(parts.scheme, 0) if parts.port is None else parts.port
    except ValueError:  # a port that is none, a bracket left open
        parts, port = urlsplit(""), 0
    if parts.password is not None or parts.scheme not in _PORTS or not parts.hostname or not port:
        shown = url if "@" not in url else "an address with a user or a password in it"
        raise InputError(
            where="--broker",
            expected="mqtt://HOST:PORT or mqtts://HOST:PORT",
            found=shown,
            do="Write the address so; a user goes into --username, a password into a file named "
            "by --password-file.",
        )
    if (parts.scheme == "mqtts") != (tls is not None):
        raise InputError(
            where="--broker",
            expected="mqtts:// and --ca together, or neither",
            found="mqtt:// with --ca" if tls else "mqtts:// without --ca",
            do="Name the file of whoever signed the broker's certificate with --ca, and write "
            "mqtts:// before the host.",
        )
    return BrokerAddress(parts.hostname, port, username or parts.username, password, tls=tls)
