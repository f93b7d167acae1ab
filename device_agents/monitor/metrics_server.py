"""The endpoint that Prometheus scrapes: plain HTTP, one page, bounded in every direction.

A client that sends nothing, sends garbage, reads slowly or comes a thousand times costs a thread
for at most ten seconds, and at most sixteen of them at a time; the monitor's loop never waits.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

from edge.errors import MachineError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SILENCE_S = 5.0  # one read or write of a client may take this long
_CONNECTION_S = 10.0  # and all of them together this long
_MOST_CONNECTIONS = 16

log = logging.getLogger("monitor")


class MetricsServer(socketserver.ThreadingTCPServer):
    """Serves what `page()` returns at every path. Owns its socket and its threads."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = _MOST_CONNECTIONS

    def __init__(self, address: str, port: int, page: Callable[[], bytes]) -> None:
        self.page = page
        self.refused = 0  # connections beyond the bound, and ones that took too long
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._since_s: dict[socket.socket, float] = {}
        self._since_lock = threading.Lock()
        try:
            super().__init__((address, port), _Page)
        except (OSError, UnicodeError) as error:
            raise MachineError(
                where=f"{address}:{port}",
                expected="an address of this machine with a free port, for the metrics",
                found=str(error),
                do="Change monitor.address or monitor.port in the station file, or stop what "
                f"listens there (`ss -ltnp 'sport = :{port}'` names it).",
            ) from None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, unless too many are open."""
        with self._since_lock:
            too_many = len(self._since_s) >= _MOST_CONNECTIONS
            if not too_many:
                self._since_s[request] = time.monotonic()
        if too_many:
            self.refused += 1
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection and close it."""
        with self._since_lock:
            self._since_s.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Break connections that are too old. The server calls this about twice a second."""
        oldest_s = time.monotonic() - _CONNECTION_S
        with self._since_lock:
            old = [request for request, since_s in self._since_s.items() if since_s < oldest_s]
        for request in old:
            self.refused += 1
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)  # its thread wakes up and closes it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""
        log.debug("scrape from %s failed", client_address, exc_info=True)


class _Page(BaseHTTPRequestHandler):
    timeout = _SILENCE_S
    server: MetricsServer

    def do_GET(self) -> None:
        page = self.server.page()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


@contextlib.contextmanager
def served(address: str, port: int, page: Callable[[], bytes]) -> Iterator[MetricsServer]:
    """Serve `page` in a thread until the block ends. Raises MachineError where it cannot listen."""
    server = MetricsServer(address, port, page)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
