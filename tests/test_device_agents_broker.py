"""The broker for demo and tests: which one it is, and that it comes and goes."""

import importlib.util
import socket
from pathlib import Path

import pytest

from device_agents import broker as broker_module
from device_agents.broker import broker_kind, free_port, running_broker
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.link import Link
from edge.errors import MachineError

KINDS = ["mosquitto", "iotcore"]


def has(kind: str) -> bool:
    if kind == "mosquitto":
        return broker_module._mosquitto() is not None
    return importlib.util.find_spec("iotcore") is not None


@pytest.mark.parametrize("kind", KINDS)
def test_broker_takes_mqtt_5_can_be_restarted_and_is_gone_at_the_end(tmp_path, kind):
    if not has(kind):
        pytest.skip(f"{kind} is not installed")
    with running_broker(tmp_path / "new" / "folder", kind=kind) as broker:
        for _ in range(2):
            with Link(BrokerAddress("127.0.0.1", broker.port), "t") as link:
                link.open()
                assert link.ended is None
            broker.stop()
            with pytest.raises(MachineError, match="refused"):
                Link(BrokerAddress("127.0.0.1", broker.port), "t").open()
            broker.start()
        assert broker.url == f"mqtt://127.0.0.1:{broker.port}"
        assert kind in broker.name.lower()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", broker.port)) != 0


def test_port_that_is_taken_says_so(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with (
            pytest.raises(MachineError, match="Free the port"),
            running_broker(tmp_path, taken.getsockname()[1]),
        ):
            pass


def test_machine_without_any_broker_names_both_packages(monkeypatch):
    monkeypatch.setattr(broker_module, "_mosquitto", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"apt-get install mosquitto.*pip install iotcore"):
        broker_kind()


def test_free_port_can_be_bound_and_is_never_given_to_a_client():
    port = free_port()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
    lowest_of_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert port < lowest_of_clients


def test_something_else_on_the_port_is_not_taken_for_a_broker():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = BrokerAddress("127.0.0.1", silent.getsockname()[1], "u", "s3cret")
        assert "s3cret" not in repr(address)
        assert "s3cret" not in str(address)
        link = Link(address, "t")
        with pytest.raises(MachineError, match="no answer to CONNECT"):
            link.open()
        link.close()
