"""Where the broker is, and who we are to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from device_agents.mqtt.tls import Tls


@dataclass(frozen=True)
class BrokerAddress:
    """Where the broker is and who we are to it. `repr` never shows the password."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    keepalive_s: int = 20
    tls: Tls | None = None  # None: in clear

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"
