"""What systemd hears: real datagrams over a real socket."""

import contextlib
import os
import socket
import sys

import pytest

from device_agents import notify


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path, monkeypatch):
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    name = str(tmp_path / "notify") if request.param == "path" else f"@orin-{os.getpid()}"
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.bind("\0" + name[1:] if name[0] == "@" else name)
    end.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    yield end
    end.close()


def test_each_word_is_one_datagram(systemd):
    notify.ready()
    notify.status("degraded:\nsource left\x00 gone")
    notify.watchdog()
    notify.stopping()
    heard = [systemd.recv(4096) for _ in range(4)]
    assert heard[0] == b"READY=1"
    assert heard[1].startswith(b"STATUS=degraded: source left")
    assert b"\n" not in heard[1], "a line more would be a variable of its own"
    assert heard[2:] == [b"WATCHDOG=1", b"STOPPING=1"]


@pytest.mark.parametrize("name", ["", "relative", "/nobody/listens/here", "@nobody-listens"])
def test_nobody_who_listens_is_no_failure(monkeypatch, name):
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify.ready()
    notify.watchdog()


def test_socket_that_nobody_empties_does_not_hold_the_agent(systemd):
    for _ in range(10_000):
        notify.watchdog()
    systemd.setblocking(False)
    received = 0
    with contextlib.suppress(BlockingIOError):
        while systemd.recv(4096):
            received += 1
    assert 0 < received < 10_000, "the socket was full, and what it did not take was dropped"


@pytest.mark.parametrize(
    ("usec", "pid", "every_s"),
    [
        ("30000000", None, 15.0),
        ("30000000", str(os.getpid()), 15.0),
        ("30000000", "1", None),  # meant for another process
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_watchdog_is_fed_at_half_of_what_systemd_allows(monkeypatch, usec, pid, every_s):
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert notify.watchdog_every_s() == every_s
