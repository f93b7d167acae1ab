"""Station files of any kind: read, or refused in words that name key, value and a right one."""

import math
import re
import string

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_station import write_station

from device_agents import station
from device_agents.station import StationFile, station_from_toml
from edge.config import struct_from_table, struct_from_toml
from edge.errors import InputError

WHOLE = """
station = { site = "north", area = "milling", line = "l1", station = "s1" }
[sources.left]
recording = "rec"
parts_per_second = 5.0
[sources.right]
gstreamer = "videotestsrc"
sensor_gstreamer = "audiotestsrc"
sensor_scale = [1.0, 2.0]
[loop]
queue = 8
[model]
bundle = "bundle"
[pictures]
publish = "fail"
[broker]
host = "plant"
port = 1883
[monitor]
every_s = 5.0
"""
STRUCT_NAMES = {name for name, kind in vars(station).items() if isinstance(kind, type)}
FRESH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def read(folder, text):
    """Read a station file with this text: a station, or the words that refuse it."""
    path = folder / "station.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        return station_from_toml(path)
    except InputError as error:
        refusal = error
    assert refusal.where.startswith(str(path))
    assert refusal.expected
    assert not STRUCT_NAMES & set(re.findall(r"\w+", refusal.expected)), "a name of ours, no key's"
    assert refusal.found
    assert refusal.do.rstrip().endswith((".", "?"))
    return str(refusal)


def test_the_file_that_the_others_are_made_from_is_right(tmp_path):
    assert read(tmp_path, WHOLE).broker.port == 1883


@FRESH
@given(data=st.binary(max_size=200), place=st.integers(0, len(WHOLE)))
def test_any_bytes_anywhere_in_a_station_file(tmp_path, data, place):
    read(tmp_path, data)
    whole = WHOLE.encode()
    read(tmp_path, whole[:place] + data + whole[place:])
    read(tmp_path, whole[:place])


TOML_VALUES = st.sampled_from(
    [
        *(
            "true",
            "-1",
            "0",
            "7",
            "1.5",
            "inf",
            "-inf",
            "nan",
            "1e400",
            "9" * 30,
            "9" * 5_000,
            "0x" + "f" * 5_000,
        ),
        *(
            '""',
            '"x"',
            '"a/b"',
            '"\\u0000"',
            '"7"',
            "'''\n'''",
            "[]",
            "{}",
            "[[[]]]",
            '[{a = "b"}]',
        ),
        *("2026-03-02", "2026-03-02T06:00:00Z", "06:00:00", "[" * 5_000, "[" * 400 + "]" * 400),
        *(
            '{ left = { recording = "r" } }',
            '{ left = "r" }',
            '{ "" = {} }',
            "[1, true]",
            "2026-02-30",
        ),
    ]
)
KEYS = [
    *("station", "station.line", "source", "sources", "sources.left", "sources.left.recording"),
    *("sources.left.parts_per_second", "sources.left.repeat", "sources.right.sensor_scale"),
    *("sources.right.width", "loop", "loop.queue", "loop.deadline_ms", "model.bundle", "model"),
    *("model.threads", "outbox.path", "outbox.max_bytes", "pictures.publish", "broker.host"),
    *("broker.port", "broker.health_every_s", "broker.max_messages_per_second", "monitor.port"),
    *("monitor.every_s", "monitor.jtop", "pictures.share_of_passes", "broker.keepalive_s", "x.y"),
]


def with_key(key, value):
    """The whole file, with one dotted key set at its head and its old line taken out."""
    table, _, leaf = key.rpartition(".")
    lines, inside, out = WHOLE.splitlines(), "", []
    for line in lines:
        inside = line.strip("[]") if line.startswith("[") else inside
        is_it = inside == table and line.startswith(f"{leaf} =")
        if not is_it and not (line.strip("[]") == key or inside == key):
            out.append(line)
    return f"{key} = {value}\n" + "\n".join(out)


@settings(FRESH, max_examples=300)
@given(key=st.sampled_from(KEYS), value=TOML_VALUES)
@example(key="broker.port", value="9" * 5_000)
@example(key="model.bundle", value="[" * 5_000)
@example(key="broker.host", value='"\\u0000"')
@example(key="monitor.every_s", value="inf")
@example(key="outbox.max_bytes", value="9" * 30)
@example(key="outbox.max_bytes", value="0x" + "f" * 5_000)
@example(key="sources", value='{ "\\u0000" = { recording = "r" } }')
def test_any_value_under_any_key(tmp_path, key, value):
    answer = read(tmp_path, with_key(key, value))
    if isinstance(answer, str):
        return
    for text in strings_in(answer):
        assert "\0" not in text, "no file and no host has such a name"
    for number in numbers_in(answer):
        assert math.isfinite(number)
        assert abs(number) < 2**63


def parts_of(value):
    if hasattr(value, "__struct_fields__"):
        for field in value.__struct_fields__:
            yield from parts_of(getattr(value, field))
    elif isinstance(value, dict):
        yield from parts_of([*value.keys(), *value.values()])
    elif isinstance(value, tuple | list):
        for item in value:
            yield from parts_of(item)
    else:
        yield value


def strings_in(value):
    return [part for part in parts_of(value) if isinstance(part, str)]


def numbers_in(value):
    return [part for part in parts_of(value) if isinstance(part, int | float)]


@FRESH
@given(
    table=st.dictionaries(
        st.sampled_from(StationFile.__struct_fields__) | st.text(string.ascii_letters, max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_any_table_is_taken_or_refused_in_words(table):
    with pytest.raises(InputError):
        struct_from_table(table, StationFile, where="test")


@pytest.mark.parametrize(
    ("wrong", "right", "words"),
    [
        ("port = 1883", 'port = "1883"', ("broker.port", "'1883'", "int")),
        ("port = 1883", "port = 70000", ("broker.port", "70000", "65535")),
        ("port = 1883", "prot = 1883", ("broker.prot", "'port'")),
        ("queue = 8", "queue = 0", ("loop.queue", "0", "1")),
        ("queue = 8", "queue = 8.5", ("loop.queue", "8.5", "int")),
        ("queue = 8", "queu = 8", ("loop.queu", "'queue'")),
        ('publish = "fail"', 'publish = "fial"', ("pictures.publish", "'fial'", "'fail'")),
        ('publish = "fail"', "publish = 1", ("pictures.publish", "1")),
        ("[sources.left]", "[source.left]", ("source.left",)),
        ("[sources.left]", "[sorces.left]", ("sorces", "'sources'")),
        ("[sources.left]", "[sources]", ("sources.recording",)),
        ('recording = "rec"', 'recroding = "rec"', ("sources.left.recroding", "'recording'")),
        ('recording = "rec"', "recording = 5", ("sources.left.recording", "5", "string")),
        ("parts_per_second = 5.0", "parts_per_second = 0", ("sources.left.parts_per_second", "0")),
        ("[1.0, 2.0]", '[1.0, "2"]', ("sources.right.sensor_scale", "'2'", "float")),
        ('line = "l1"', 'line = "a/b"', ("line", "a/b")),
        (', line = "l1"', "", ("line",)),
        ('host = "plant"', "", ("broker", "host")),
        ('bundle = "bundle"', "", ("model", "bundle")),
        ("[model]", "[modle]", ("modle", "'model'")),
        ("every_s = 5.0", "every_s = nan", ("monitor.every_s", "nan")),
        ("every_s = 5.0", "every_s = inf", ("monitor.every_s", "inf")),
        ('host = "plant"', 'host = "a\\u0000b"', ("broker.host", "a\\x00b")),
    ],
)
def test_refusal_names_the_key_the_value_and_the_nearest_right_one(tmp_path, wrong, right, words):
    assert wrong in WHOLE
    said = read(tmp_path, WHOLE.replace(wrong, right, 1))
    assert isinstance(said, str), "it was taken"
    for word in words:
        assert word in said, said


def test_nesting_without_end_and_numbers_without_end_are_refused(tmp_path):
    for text in ("a = " + "[" * 100_000, "a = " + "9" * 100_000, "a." * 2_000 + "b = 1"):
        assert isinstance(read(tmp_path, text), str)


def test_file_of_no_reasonable_size_is_refused_without_being_read_whole(tmp_path):
    path = write_station(tmp_path)
    with path.open("ab") as file:
        file.truncate(8 << 30)  # a hole: it takes no room
    with pytest.raises(InputError, match="1 MiB"):
        struct_from_toml(path, StationFile)
    with pytest.raises(InputError):
        struct_from_toml(path.parent / "no\0where", StationFile)
