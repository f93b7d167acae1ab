"""`edge agent`: run one of the station's agents until it is told to stop."""

from __future__ import annotations

import _thread
import argparse
import signal
import sys
from pathlib import Path
from threading import Event

from edge.cli.progress import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define `edge agent`."""
    parser.add_argument(
        "agent",
        choices=("inspector", "publisher", "monitor"),
        help="inspector: sources to outbox; publisher: outbox to broker; "
        "monitor: the device's state and metrics",
    )
    parser.add_argument("--station", type=Path, required=True, help="the station file (TOML)")


def run(arguments: argparse.Namespace) -> int:
    """Run the agent. SIGTERM and Ctrl-C stop it cleanly."""
    from device_agents.station import station_from_toml

    station = station_from_toml(arguments.station)
    log_to_stderr()
    stop = stop_on_signals()
    if arguments.agent == "inspector":
        from device_agents.inspector.loop import run_inspector

        say(
            f"inspector of {station.station}: {', '.join(station.all_sources())} through "
            f"{station.model.bundle} into {station.outbox.path}"
        )
        run_inspector(station, stop)
    elif arguments.agent == "monitor":
        from device_agents.monitor.loop import run_monitor

        say(f"monitor of {station.station}: every {station.monitor.every_s:g} s")
        run_monitor(station, stop)
    else:
        from device_agents.publisher.loop import run_publisher

        scheme = "mqtt" if station.broker.ca_file is None else "mqtts"
        say(
            f"publisher of {station.station}: {station.outbox.path} to "
            f"{scheme}://{station.broker.host}:{station.broker.port}"
        )
        run_publisher(station, stop)
    return 0


def log_to_stderr() -> None:
    """One line per event, with the time in UTC."""
    import logging
    import time

    line = logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    line.converter = time.gmtime
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(line)
    logging.basicConfig(level=logging.INFO, handlers=[to_stderr])


def stop_on_signals() -> Event:
    """Return an event that SIGTERM and SIGINT set; a second SIGINT ends at once."""
    stop = Event()
    seen: list[int] = []

    def on_signal(number: int, _frame: object) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(number)
        # Not here: the main thread may be inside `stop.wait`, and hold the lock that `set` takes.
        _thread.start_new_thread(stop.set, ())

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop
