"""The seam to jetson-stats: the only module that imports `jtop`, and only where it is asked for.

jetson-stats is AGPL-3.0 and an extra of its own (`health`). Its library talks to a root service
that must be of the same version, and its fields come and go with JetPack releases: each is read
by itself, and one that is missing or of another shape is left out.
"""

from __future__ import annotations

import contextlib
import logging
import math
from datetime import timedelta
from typing import Any

import msgspec

from edge.errors import MachineError
from edge.messages import MachineHealth

_OFFLINE_CELSIUS = -255.0  # jtop says -256 for a zone that is switched off
_RETRY_EVERY = 12  # readings: once a minute at the usual 5 s

log = logging.getLogger("monitor")


class Jetson:
    """One connection to the jtop service, opened again once it is lost."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._client: Any = None
        self._reason = ""
        self._readings_until_retry = 0

    def over(self, machine: MachineHealth) -> MachineHealth:
        """Return `machine` with what jtop knows over it; with the reason where it does not."""
        try:
            client = self._connected()
            return _over(machine, client)
        except MachineError as error:
            if error.found != self._reason:
                log.warning("%s", error)
                self._reason = error.found
            return msgspec.structs.replace(machine, reason=f"no jtop: {error.found}")

    def close(self) -> None:
        """End the connection."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.close()

    def _connected(self) -> Any:
        """Return a client that has fresh data. Raises MachineError, at once while waiting."""
        try:
            if self._client is not None:
                if self._client.ok():  # waits for the next reading, within jtop's own bound
                    return self._client
                raise RuntimeError("the service stopped sending")
            self._readings_until_retry -= 1
            if self._readings_until_retry > 0:
                raise RuntimeError(self._reason)
            from jtop import jtop  # noqa: PLC0415  AGPL: loaded only where a person asked for it

            client = jtop(interval=self._interval_s)
            client.start()
            self._client, self._reason = client, ""
            log.info("reading from jtop")
            return client
        # Whatever it raises: its errors are of no common kind, nor the same in each version.
        except Exception as error:
            self.close()
            if self._readings_until_retry <= 0:
                self._readings_until_retry = _RETRY_EVERY
            raise MachineError(
                where="jtop",
                expected="the jtop service of the same version as the installed jetson-stats",
                found=" ".join(str(error.args[0] if error.args else error).split())[:200],
                do="Install 'orin-inspect[health]', run `sudo jtop --install-service`, and put "
                "this user into the group jtop; or set monitor.jtop = false.",
            ) from None


def _over(machine: MachineHealth, client: Any) -> MachineHealth:
    """Read each field by itself; what jtop lacks stays as sysfs had it."""
    power_mode, uptime = _attribute(client, "nvpmodel"), _attribute(client, "uptime")
    ram = _at(_attribute(client, "memory"), "RAM")
    found = {
        "module": _at(_attribute(client, "board"), "hardware", "Module"),
        "power_mode": None if power_mode is None else str(power_mode),
        "temperatures_celsius": _temperatures(client),
        "power_watts": _power(client),
        "clocks_mhz": {**machine.clocks_mhz, **_clocks(client)},
        "gpu_load_percent": _gpu_load(client),
        "memory_used_bytes": _kilobytes(ram, "used"),
        "memory_total_bytes": _kilobytes(ram, "tot"),
        "uptime_s": uptime.total_seconds() if isinstance(uptime, timedelta) else None,
    }
    known = {name: value for name, value in found.items() if value not in (None, "", {})}
    return msgspec.structs.replace(machine, read_from="jtop", **known)


def _temperatures(client: Any) -> dict[str, float]:
    zones = _entries(_attribute(client, "temperature"))
    found = {name: _number(_at(zone, "temp")) for name, zone in zones.items()}
    return {name: celsius for name, celsius in _known(found).items() if celsius > _OFFLINE_CELSIUS}


def _power(client: Any) -> dict[str, float]:
    """Rails, and the total under the name of its own rail or `total`."""
    power = _attribute(client, "power")
    rails, total = _entries(_at(power, "rail")), _at(power, "tot")
    rails[str(_at(total, "name") or "total")] = total
    milliwatts = _known({name: _number(_at(rail, "power")) for name, rail in rails.items()})
    return {name: value / 1e3 for name, value in milliwatts.items()}


def _clocks(client: Any) -> dict[str, float]:
    gpus = _entries(_attribute(client, "gpu"))
    found = {name: _number(_at(gpu, "freq", "cur")) for name, gpu in gpus.items()}
    found["emc"] = _number(_at(_attribute(client, "memory"), "EMC", "cur"))
    return {name: kilohertz / 1e3 for name, kilohertz in _known(found).items()}


def _gpu_load(client: Any) -> float | None:
    gpus = _entries(_attribute(client, "gpu"))
    loads = _known({name: _number(_at(gpu, "status", "load")) for name, gpu in gpus.items()})
    return max(loads.values(), default=None)


def _kilobytes(ram: Any, name: str) -> int | None:
    kilobytes = _number(_at(ram, name))
    return None if kilobytes is None else int(kilobytes) << 10


def _attribute(client: Any, name: str) -> Any:
    """Read a property of the client; None where this version has none, or fails at it."""
    try:
        return getattr(client, name)
    except Exception:
        return None


def _at(value: Any, *keys: str) -> Any:
    """Walk into what behaves like a dict; None where the way ends."""
    try:
        for key in keys:
            value = value[key]
    except Exception:
        return None
    return value


def _entries(value: Any) -> dict[str, Any]:
    try:
        return {str(name): value[name] for name in value}
    except Exception:
        return {}


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _known(found: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in found.items() if value is not None}
