"""The station file: strict, with paths relative to itself."""

import pytest
from small_station import write_station

from device_agents.station import password_from, station_from_toml
from edge.errors import InputError


def test_paths_are_relative_to_the_station_file(tmp_path, monkeypatch):
    path = write_station(tmp_path, broker='username = "s1"\npassword_file = "secret"')
    monkeypatch.chdir("/")
    station = station_from_toml(path)
    assert station.source.recording == str(tmp_path / "rec")
    assert station.model.bundle == str(tmp_path / "bundle")
    assert station.outbox.path == str(tmp_path / "outbox.sqlite")
    assert station.broker.password_file == str(tmp_path / "secret")
    assert str(station.station) == "north/milling/l1/s1"


def test_unknown_key_names_the_nearest(tmp_path):
    path = write_station(tmp_path, source="parts_per_secnd = 5")
    with pytest.raises(InputError, match=r"source\.parts_per_secnd.*'parts_per_second'"):
        station_from_toml(path)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ({"port": 70_000}, r"65535.*broker\.port"),
        ({"source": "parts_per_second = 0"}, r"source\.parts_per_second"),
        ({"source": 'split = ["a"]'}, r"source\.split"),
        ({"broker": 'password_file = "secret"'}, "password without a user"),
    ],
)
def test_impossible_value_names_its_key(tmp_path, written, found):
    with pytest.raises(InputError, match=found):
        station_from_toml(write_station(tmp_path, **written))


def test_station_name_that_is_no_topic_level_is_refused(tmp_path):
    path = write_station(tmp_path)
    path.write_text(path.read_text().replace('"milling"', '"mill/ing"'))
    with pytest.raises(InputError, match="one MQTT topic level"):
        station_from_toml(path)


def test_missing_station_file_and_missing_section(tmp_path):
    with pytest.raises(InputError, match="found nothing"):
        station_from_toml(tmp_path / "none.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(InputError, match="station"):
        station_from_toml(tmp_path / "empty.toml")


@pytest.mark.parametrize("content", [b"", b"\nsecond", b"\xff\xfe"])
def test_useless_password_file_is_refused_without_showing_it(tmp_path, content):
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(InputError, match="password") as refused:
        password_from(str(path))
    assert "second" not in str(refused.value)
    with pytest.raises(InputError, match="No such file"):
        password_from(str(tmp_path / "none"))


def test_password_is_the_first_line(tmp_path):
    (tmp_path / "secret").write_text("s3cret\nnot this\n")
    assert password_from(str(tmp_path / "secret")) == "s3cret"
    assert password_from(None) is None
