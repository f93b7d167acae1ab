"""TLS to the broker: what is wrong with a file is said by its name, and time is waited for."""

import logging
import socket
import ssl
import threading
import time
from threading import Event

import pytest
from certificates import DAY_S, Authority, Pair, needs_openssl
from hypothesis import given
from hypothesis import strategies as st
from small_station import needs_mosquitto, write_station
from test_device_agents_publisher_loop import (
    configured_broker,
    password_for,
    publisher_of,
    records_into,
    stopped,
)

from device_agents.consumer.listener import Subscriber, received_from
from device_agents.mqtt import credentials
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.credentials import address_of
from device_agents.mqtt.link import Link
from device_agents.mqtt.tls import Tls, context_from, validity_of
from device_agents.station import Broker, station_from_toml
from device_agents.status import read_status
from edge.errors import EdgeError, InputError, MachineError
from edge.messages import PublisherHealth

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def ours(authority):
    return authority.pair("station", password="k3y-s3cret")


def tls_of(authority, pair: Pair | None = None, password: str | None = None) -> Tls:
    files = (None, None) if pair is None else (str(pair.certificate), str(pair.key))
    return Tls(str(authority.certificate), *files, password)


def tls_broker(folder, pair: Pair, *lines: str):
    """Mosquitto with TLS on its only listener."""
    config = [f"certfile {pair.certificate}", f"keyfile {pair.key}", *lines]
    return configured_broker(folder, "\n".join(config))


def tls_lines(authority, pair: Pair | None = None) -> str:
    lines = [f'ca_file = "{authority.certificate}"']
    if pair is not None:
        lines += [f'certificate_file = "{pair.certificate}"', f'key_file = "{pair.key}"']
    return "\n".join(lines)


def test_certificate_and_host_name_are_always_checked_at_tls_1_2_or_newer(authority, ours):
    context = context_from(tls_of(authority, ours, "k3y-s3cret"))
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    off = [name for name in Broker.__struct_fields__ if "verify" in name or "insecure" in name]
    assert off == [], "there is no key that turns checking off"


def test_each_wrong_file_is_named_with_the_next_step(authority, ours, tmp_path):
    other = authority.pair("other")
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"\x30\x82\xff no certificate")
    missing = tmp_path / "missing.pem"
    good = (authority.certificate, other.certificate, other.key, None)
    for changed, where, found in (
        ({0: missing}, missing, "No such file"),
        ({0: tmp_path}, tmp_path, "directory"),
        ({0: garbage}, garbage, "certificate"),
        ({0: other.key}, other.key, "certificate"),
        ({1: missing}, missing, "No such file"),
        ({1: garbage}, garbage, ""),
        ({2: missing}, missing, "No such file"),
        ({2: ours.certificate}, ours.certificate, "no such text"),
        ({2: authority.key}, authority.key, "another certificate"),
        ({1: ours.certificate, 2: ours.key}, ours.key, "found none"),
        ({1: ours.certificate, 2: ours.key, 3: "wr0ng"}, ours.key, "found a wrong one"),
    ):
        files = [changed.get(place, file) for place, file in enumerate(good)]
        with pytest.raises(InputError) as caught:
            context_from(Tls(*(None if f is None else str(f) for f in files)))
        assert caught.value.where == str(where), changed
        assert found in str(caught.value), changed
        assert "wr0ng" not in str(caught.value) + repr(caught.value)


def test_own_certificate_is_renewed_by_people_and_started_by_time(authority):
    now_s = time.time()
    soon = authority.pair("soon", since_s=3600)
    late = authority.pair("late", since_s=-2 * DAY_S, until_s=-3600)
    with pytest.raises(MachineError, match=r"Waiting for the time.*NTP"):
        context_from(tls_of(authority, soon))
    assert context_from(tls_of(authority, soon), now_s=now_s + 7200)
    with pytest.raises(InputError, match=r"ended at 20.*renewed"):
        context_from(tls_of(authority, late))
    with pytest.raises(MachineError, match="1970-01-01"):
        context_from(tls_of(authority, late), now_s=5.0)


def test_validity_is_read_from_the_certificate_itself(authority):
    now_s = time.time()
    pair = authority.pair("dated", since_s=-7 * DAY_S, until_s=365.0 * 60 * DAY_S)
    since, until = validity_of(pair.certificate.read_bytes())
    assert since - now_s == pytest.approx(-7 * DAY_S, abs=5)
    assert until - now_s == pytest.approx(365.0 * 60 * DAY_S, abs=5), "past 2049: another type"


@given(st.binary(max_size=300), st.integers(0, 2000), st.integers(0, 255))
def test_bytes_that_are_no_certificate_have_no_validity_and_do_no_harm(authority, junk, at, byte):
    assert validity_of(junk) is None
    validity_of(b"-----BEGIN CERTIFICATE-----" + junk + b"-----END CERTIFICATE-----")
    broken = bytearray(authority.certificate.read_bytes())
    broken[at % len(broken)] = byte
    validity_of(bytes(broken))


@needs_mosquitto
def test_mutual_tls_carries_records_to_a_listener_over_tls(tmp_path, authority, ours):
    """Publisher as a process with a locked key; the broker takes the name from the certificate."""
    server = authority.pair("broker")
    broker = tls_broker(
        *(tmp_path, server, f"cafile {authority.certificate}"),
        *("require_certificate true", "use_identity_as_username true"),
    )
    try:
        records_into(tmp_path, 20)
        (tmp_path / "locked").write_text("k3y-s3cret\n")
        lines = tls_lines(authority, ours) + '\nkey_password_file = "locked"'
        write_station(tmp_path, broker.port, broker=lines)
        address = BrokerAddress("127.0.0.1", broker.port, tls=tls_of(authority, ours, "k3y-s3cret"))
        stop, heard = Event(), []
        messages = received_from(Subscriber(address), stop)
        assert next(messages) is None
        process = publisher_of(tmp_path)
        for message in messages:
            heard += [message] if message is not None and "inspection" in message.topic else []
            if len(heard) == 20:
                break
        stop.set()
        said = stopped(process)
        assert f"connected to mqtts://127.0.0.1:{broker.port}" in said
        # Without a certificate of ours: refused, by name.
        with pytest.raises(EdgeError) as caught:
            Link(BrokerAddress("localhost", broker.port, tls=tls_of(authority)), "bare").open()
        assert "we show no certificate" in str(caught.value)
        assert isinstance(caught.value, InputError)
        # In clear on a TLS port: no connection, and no crash.
        with pytest.raises(MachineError):
            Link(BrokerAddress("localhost", broker.port), "clear").open()
        # Signed by an authority that the broker does not know.
        stranger = Authority(tmp_path, "stranger")
        shown = tls_of(authority, stranger.pair("station"))
        with pytest.raises(InputError, match="alert") as caught:
            Link(BrokerAddress("localhost", broker.port, tls=shown), "strange").open()
        assert caught.value.where == str(shown.certificate_file)
    finally:
        broker.stop()


@needs_mosquitto
@pytest.mark.parametrize("wrong", ["authority", "name", "expired"])
def test_broker_that_cannot_be_trusted_is_refused_with_the_reason(tmp_path, authority, wrong):
    options = {
        "authority": {},
        "name": {"names": "DNS:somewhere.else"},
        "expired": {"since_s": -2 * DAY_S, "until_s": -60.0},
    }[wrong]
    broker = tls_broker(tmp_path, authority.pair(f"broker-{wrong}", **options))
    trusted = Authority(tmp_path, "another") if wrong == "authority" else authority
    try:
        link = Link(BrokerAddress("127.0.0.1", broker.port, tls=tls_of(trusted)), "careful")
        with pytest.raises(EdgeError) as caught:
            link.open()
    finally:
        broker.stop()
    kind, text = {
        "authority": (InputError, f"{trusted.certificate}: expected the authority that signed"),
        "name": (InputError, "expected a certificate for the host that we name"),
        "expired": (MachineError, "found one that has expired"),
    }[wrong]
    assert isinstance(caught.value, kind)
    assert text in str(caught.value)


def test_port_that_speaks_no_tls_is_named_as_such(authority):
    server = socket.create_server(("127.0.0.1", 0))

    def answer():
        connection = server.accept()[0]
        connection.recv(1000)
        connection.sendall(b"\x20\x02\x00\x00 I am plain MQTT")
        connection.close()

    threading.Thread(target=answer, daemon=True).start()
    address = BrokerAddress("127.0.0.1", server.getsockname()[1], tls=tls_of(authority))
    with pytest.raises(MachineError, match="speaks TLS on this port"):
        Link(address, "x").open()
    server.close()


@needs_mosquitto
def test_certificate_that_is_not_valid_yet_is_waited_for_with_the_reason(tmp_path, authority):
    """As after a boot in 1970: nothing is refused for good, and the records go when time comes."""
    broker = tls_broker(tmp_path, authority.pair("soon", since_s=5))
    process = None
    try:
        records_into(tmp_path, 5)
        write_station(tmp_path, broker.port, broker=tls_lines(authority))
        process = publisher_of(tmp_path)
        while b"not valid yet" not in (line := process.stderr.readline()):
            assert line
        assert b"Waiting for the time" in line
        health = read_status(tmp_path / "outbox.sqlite", PublisherHealth, fresh_s=5)
        assert health.state == "away"
        assert "not valid yet" in health.reason
        while b"connected to mqtts" not in (line := process.stderr.readline()):
            assert line
        deadline = time.monotonic() + 10
        while True:
            health = read_status(tmp_path / "outbox.sqlite", PublisherHealth, fresh_s=5)
            if health is not None and health.acknowledged == 5:
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert health.state == "connected"
        stopped(process)
    finally:
        broker.stop()
        if process is not None:
            process.kill()


@needs_mosquitto
def test_no_secret_stands_in_any_log_error_or_repr(tmp_path, authority, ours, caplog):
    secrets = ("p4ss-w0rd", "k3y-s3cret")
    broker = tls_broker(
        *(tmp_path, authority.pair("broker"), f"cafile {authority.certificate}"),
        *("require_certificate true", password_for(tmp_path, "s1", "other")),
    )
    try:
        records_into(tmp_path, 3)
        (tmp_path / "password").write_text(secrets[0] + "\n")
        (tmp_path / "locked").write_text(secrets[1] + "\n")
        (tmp_path / "password").chmod(0o644)
        (tmp_path / "locked").chmod(0o600)
        lines = tls_lines(authority, ours) + (
            '\nkey_password_file = "locked"\nusername = "s1"\npassword_file = "password"'
        )
        path = write_station(tmp_path, broker.port, broker=lines)
        process = publisher_of(tmp_path)
        said = process.communicate(timeout=15)[1].decode()
    finally:
        broker.stop()
    credentials._warned.clear()
    with caplog.at_level(logging.DEBUG):
        address = address_of(station_from_toml(path).broker)
        with pytest.raises(EdgeError) as caught:
            Link(address, "x").open()
    status = read_status(tmp_path / "outbox.sqlite", PublisherHealth, fresh_s=60)
    assert process.returncode == 2, said
    assert status.state == "stopped"
    assert "user 's1'" in status.reason
    shown = (said, caplog.text, repr(address), str(address), repr(caught.value), status.reason)
    assert not [text for text in shown for secret in secrets if secret in text]
    for text in (said, caplog.text):
        assert f"{tmp_path / 'password'} is a secret that every user" in text
        assert f"{tmp_path / 'locked'} is a secret" not in text


def test_renewed_password_needs_no_restart(tmp_path):
    path = tmp_path / "password"
    path.write_text("first\n")
    broker = Broker("localhost", username="s1", password_file=str(path))
    assert address_of(broker).password == "first"
    path.write_text("second\n")
    assert address_of(broker).password == "second"


def test_password_in_clear_over_the_network_is_warned_of_once(tmp_path, caplog):
    credentials._warned.clear()
    (tmp_path / "password").write_text("p4ss-w0rd\n")
    (tmp_path / "password").chmod(0o600)
    broker = Broker("broker.plant", username="s1", password_file=str(tmp_path / "password"))
    for _ in range(3):
        address_of(broker)
    assert [r.getMessage() for r in caplog.records] == [
        "the password goes to broker.plant in clear: give broker.ca_file for TLS"
    ]
