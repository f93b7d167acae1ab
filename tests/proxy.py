"""A TCP link to a broker that a test can cut, refuse, or leave half open, and listen in on."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

Tap = Callable[[str, bytes], None]  # ("to_broker" or "to_station", bytes), one tap a connection
DIRECTIONS = ("to_broker", "to_station")


class Connection:
    """One station's connection through the proxy, and what is wrong with it."""

    def __init__(self, station: socket.socket, broker: socket.socket, tap: Tap) -> None:
        self.ends = {"to_broker": (station, broker), "to_station": (broker, station)}
        self.swallows: frozenset[str] = frozenset()
        self._tap = tap
        for direction in DIRECTIONS:
            threading.Thread(target=self._pump, args=(direction,), daemon=True).start()

    def cut(self) -> None:
        """End both sides at once."""
        for end in self.ends["to_broker"]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pump(self, direction: str) -> None:
        source, sink = self.ends[direction]
        with contextlib.suppress(OSError):
            while chunk := source.recv(65_536):
                swallowed = direction in self.swallows
                if direction == "to_station" or not swallowed:
                    self._tap(direction, chunk)  # what the broker said, it said, heard or not
                if not swallowed:
                    sink.sendall(chunk)
        if direction not in self.swallows:  # a dead link carries no farewell either
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)


class LinkProxy:
    """Stands between stations and a broker. Stations connect to `port` on 127.0.0.1."""

    def __init__(self, target_port: int, new_tap: Callable[[], Tap] | None = None) -> None:
        self._target = ("127.0.0.1", target_port)
        self._new_tap = new_tap or (lambda: lambda direction, chunk: None)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.refuses = False  # True: a connection is closed as soon as it is made
        self.accepted = 0
        self._connections: list[Connection] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection without a word."""
        connections, self._connections = self._connections, []
        for connection in connections:
            connection.cut()

    def half_open(self, directions: frozenset[str]) -> None:
        """Let nothing more through on what is connected now, as when a switch loses power.

        Neither side hears that the link is gone. New connections are not touched.
        """
        for connection in self._connections:
            connection.swallows = directions

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the server was closed
            while True:
                station = self._server.accept()[0]
                if self.refuses:
                    station.close()
                    continue
                try:
                    broker = socket.create_connection(self._target)
                except OSError:  # the broker is away
                    station.close()
                    continue
                for end in (station, broker):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.accepted += 1
                self._connections.append(Connection(station, broker, self._new_tap()))
