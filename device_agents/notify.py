"""What an agent tells systemd: ready, its status in words, that it lives, and that it stops.

The protocol is one datagram of `NAME=value` to the socket in $NOTIFY_SOCKET, whose leading `@`
stands for an abstract socket (man 3 sd_notify). Without that variable, as on a desk, nothing is
sent. systemd that does not listen is no reason to stop an inspection: failures are ignored.
"""

from __future__ import annotations

import contextlib
import os
import socket


def ready() -> None:
    """Say that the agent has started: `systemctl start` returns now (`Type=notify`)."""
    _send("READY=1")


def status(text: str) -> None:
    """Show one line in `systemctl status`."""
    _send("STATUS=" + " ".join(text.split()))


def watchdog() -> None:
    """Say that the agent lives; without it for `WatchdogSec`, systemd restarts it."""
    _send("WATCHDOG=1")


def stopping() -> None:
    """Say that the agent ends on purpose."""
    _send("STOPPING=1")


def watchdog_every_s() -> float | None:
    """How often to call `watchdog`: half of what systemd allows; None where it does not watch."""
    allowed, watched = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not allowed.isdecimal() or int(allowed) == 0 or watched not in (None, str(os.getpid())):
        return None
    return int(allowed) / 2e6


def _send(message: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("@", "/"):
        return
    target = "\0" + address[1:] if address[0] == "@" else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.setblocking(False)  # a full socket must not hold the agent
        end.sendto(message.encode(), target)
