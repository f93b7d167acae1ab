"""The station file: strict, with paths relative to itself."""

import pytest
from small_station import write_station

from device_agents.station import password_from, station_from_toml
from edge.errors import InputError


def test_paths_are_relative_to_the_station_file(tmp_path, monkeypatch):
    path = write_station(tmp_path, broker='username = "s1"\npassword_file = "secret"')
    monkeypatch.chdir("/")
    station = station_from_toml(path)
    assert station.sources["main"].recording == str(tmp_path / "rec")
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
        ({"broker": 'password_file = "secret"'}, "broker.username beside"),
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


def station_with(tmp_path, tables):
    path = tmp_path / "station.toml"
    path.write_text(
        'station = { site = "north", area = "milling", line = "l1", station = "s1" }\n'
        f'[model]\nbundle = "b"\n[broker]\nhost = "h"\n{tables}\n'
    )
    return station_from_toml(path)


def test_several_sources_are_read_by_name_with_paths_beside_the_file(tmp_path):
    station = station_with(
        tmp_path,
        '[sources.left]\nrecording = "rec"\n'
        '[sources.right]\nv4l2 = "/dev/video0"\nwidth = 640\nheight = 480\ntriggered = false\n'
        '[sources.top-2]\ngstreamer = "videotestsrc"\nsensor_gstreamer = "alsasrc"\n'
        "sensor_scale = [2.5, 10]\nstalled_after_s = 60\n",
    )
    left, right, top = station.all_sources().values()
    assert list(station.all_sources()) == ["left", "right", "top-2"]
    assert left.recording == str(tmp_path / "rec")
    assert (right.v4l2, right.width, right.triggered) == ("/dev/video0", 640, False)
    assert (top.sensor_scale, top.stalled_after_s) == ((2.5, 10.0), 60.0)


@pytest.mark.parametrize(
    ("tables", "found"),
    [
        ("", r"expected one \[source\].*found none"),
        ('[source]\nrecording = "r"\n[sources.a]\nrecording = "r"', "found both"),
        ("[source]\n", r"exactly one of source\.recording.*found none"),
        ('[source]\nrecording = "r"\nv4l2 = "/dev/video0"', "found recording and v4l2"),
        ('[sources.a]\nv4l2 = "v"\ngstreamer = "g"', r"sources\.a\.v4l2.*found v4l2 and gstreamer"),
        ('[source]\nv4l2 = "v"\nrepeat = true', r"Remove source\.repeat"),
        ('[source]\nv4l2 = "v"\nparts_per_second = 5', r"Remove source\.parts_per_second"),
        ('[source]\ngstreamer = "v"\nsplit = "test"', r"Remove source\.split"),
        ('[source]\nrecording = "r"\nwidth = 640', r"Remove source\.width"),
        ('[source]\nrecording = "r"\nstalled_after_s = 9', r"Remove source\.stalled_after_s"),
        ('[source]\nrecording = "r"\nsensor_gstreamer = "x"', r"Remove source\.sensor_gstreamer"),
        ('[source]\nv4l2 = "v"\nsensor_scale = [1.0]', r"sensor_gstreamer beside source\.sensor_s"),
        ('[sources."a/b"]\nrecording = "r"', r"letters, digits.*'a/b'"),
        ('[sources.a]\nrecordin = "r"', r"unknown key 'sources\.a\.recordin'\. .*'recording'"),
        ('[source]\nv4l2 = "v"\nwidth = 0', r"int >= 1 for source\.width, found 0"),
        ('[sources.a]\nv4l2 = "v"\n[sources.b]\nv4l2 = 5', r"string for sources\.b\.v4l2, found 5"),
        ('[source]\nv4l2 = "v"\nsensor_scale = [1, "x"]', r"float for source\.sensor_scale\[1\]"),
        ('[sources]\na = "r"', r"table for sources\.a, found 'r'"),
        ('[source]\nrecording = "r"\n[loop]\nqueue = 0', r"int >= 1 for loop\.queue, found 0"),
        ('[source]\nrecording = "r"\n[loop]\nbudget = 5', r"'loop\.budget'.*'budget_ms'"),
        (
            '[source]\nrecording = "r"\n[pictures]\npublish = "fial"',
            r"one of never, fail for pictures\.publish, found 'fial'\. Did you mean 'fail'",
        ),
        (
            '[source]\nrecording = "r"\n[pictures]\nshare_of_passes = 1.5',
            r"<= 1\.0 for pictures\.share_of_passes, found 1\.5",
        ),
        ('[source]\nrecording = "r"\n[monitor]\nport = 70000', r"65535 for monitor\.port"),
        ('[source]\nv4l2 = "v"\ndelay_ms = inf', r"finite number for source\.delay_ms, found inf"),
        ('[source]\nv4l2 = "v"\nsensor_scale = [1, nan]', r"finite.*source\.sensor_scale\[1\]"),
        ('[source]\nrecording = "r"\n[outbox]\nmax_rows = "many"', r"int for outbox\.max_rows"),
        ('[source]\nrecording = "r"\nstation = { site = "n" }', "unknown key 'source.station'"),
        ('[source]\nrecording = "r"\n[monitr]\nport = 1', r"'monitr'.*'monitor'"),
    ],
)
def test_wrong_station_file_names_key_value_and_what_is_right(tmp_path, tables, found):
    with pytest.raises(InputError, match=found) as refused:
        station_with(tmp_path, tables)
    assert refused.value.do


def test_missing_key_is_named_with_its_table(tmp_path):
    path = write_station(tmp_path)
    path.write_text(path.read_text().replace('host = "127.0.0.1"', ""))
    with pytest.raises(InputError, match=r"expected the key broker\.host, found nothing"):
        station_from_toml(path)


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ('password_file = "p"', "username"),
        ('ca_file = "c"\ncertificate_file = "p"', "key_file"),
        ('ca_file = "c"\nkey_file = "p"', "certificate_file"),
        ('certificate_file = "p"\nkey_file = "k"', "ca_file"),
        ('key_password_file = "p"', "key_file"),
    ],
)
def test_half_of_a_pair_of_keys_is_refused(tmp_path, given, needed):
    with pytest.raises(InputError, match=rf"expected broker\.{needed} beside"):
        station_from_toml(write_station(tmp_path, broker=given))


def test_monitor_port_zero_means_no_endpoint(tmp_path):
    source = '[source]\nrecording = "r"\n'
    assert station_with(tmp_path, source).monitor.port == 9109
    assert station_with(tmp_path, source + "[monitor]\nport = 0").monitor.port is None
