"""Who we are to the broker: user, password and keys from files, never in a log.

The files are read anew for each connection, so that a renewed certificate or password needs no
restart.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import stat
from pathlib import Path

from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.tls import Tls
from device_agents.station import Broker, password_from

_OTHERS_READ = stat.S_IROTH
_warned: set[str] = set()  # once per process is enough, however often the files are read

log = logging.getLogger("mqtt")


def address_of(broker: Broker) -> BrokerAddress:
    """Return where the broker is and who we are to it. Raises InputError naming the file."""
    tls = None
    if broker.ca_file is not None:
        tls = Tls(
            broker.ca_file,
            broker.certificate_file,
            broker.key_file,
            password_from(broker.key_password_file),
        )
    password = password_from(broker.password_file)
    for secret in (broker.password_file, broker.key_file, broker.key_password_file):
        if secret is not None:
            _warn_where_others_read(secret)
    if password is not None and tls is None and not _is_this_machine(broker.host):
        _warn_once(f"the password goes to {broker.host} in clear: give broker.ca_file for TLS")
    return BrokerAddress(
        broker.host, broker.port, broker.username, password, broker.keepalive_s, tls
    )


def _warn_where_others_read(path: str) -> None:
    with contextlib.suppress(OSError):  # who reads it next names what is wrong with it
        if Path(path).stat().st_mode & _OTHERS_READ:
            _warn_once(f"{path} is a secret that every user of this machine can read: chmod 600")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        log.warning("%s", text)
