"""Messages: what a consumer can rely on, and what it must survive."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge.messages
from edge.examples import EXAMPLES
from edge.messages import (
    KIND_TYPES,
    LARGEST_EXACT,
    SCHEMA,
    Command,
    Health,
    Inspection,
    Presence,
    Timings,
    UnreadableMessage,
    decode,
    encode,
)
from edge.topics import KINDS, StationId

STATION = StationId("site", "area", "line", "s1")


def inspection(**changes):
    fields = {
        "inspection_id": "e1-7",
        "station": STATION,
        "station_epoch": "e1",
        "sequence": 7,
        "sample_id": "part-7",
        "part_id": "part-7",
        "captured_at": "2026-03-02T06:00:00Z",
        "inspected_at": "2026-03-02T06:00:01Z",
        "decision": "fail",
        "label": "scratch",
        "anomaly_score": 0.7,
        "threshold": 0.4,
        "class_scores": {"ok": 0.2, "scratch": 0.8},
        "modalities": ("image", "sensor"),
        "reason": "",
        "bundle_digest": "0" * 64,
        "engine": "onnxruntime",
        "timings": Timings(1.0, 2.0, 3.5),
    }
    return Inspection(**{**fields, **changes})


@pytest.mark.parametrize(
    "message",
    [
        inspection(),
        inspection(decision="invalid", anomaly_score=None, captured_at=None, modalities=()),
        Presence(station=STATION, state="offline"),
        Health(
            station=STATION,
            station_epoch="e1",
            sent_at="2026-03-02T06:00:01Z",
            outbox_depth=3,
            counters={"dropped": 1},
        ),
    ],
)
def test_a_message_reads_back_as_it_was_and_states_its_schema(message):
    assert decode(encode(message), type(message)) == message
    assert json.loads(encode(message))["schema"] == SCHEMA


def test_every_kind_of_topic_has_its_message():
    assert tuple(KIND_TYPES) == KINDS


def test_a_field_added_within_the_schema_is_ignored():
    document = {**json.loads(encode(inspection())), "humidity": 40}
    assert decode(json.dumps(document).encode(), Inspection) == inspection()


@pytest.mark.parametrize("schema", [2, 0, "1", None, 1.5])
def test_another_schema_is_refused(schema):
    document = {**json.loads(encode(inspection())), "schema": schema}
    with pytest.raises(UnreadableMessage, match="schema 1 expected"):
        decode(json.dumps(document).encode(), Inspection)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sequence", "7"), ("decision", "maybe"), ("timings", None), ("anomaly_score", "high")],
)
def test_a_field_of_another_type_is_refused(field, value):
    document = {**json.loads(encode(inspection())), field: value}
    with pytest.raises(UnreadableMessage, match=field):
        decode(json.dumps(document).encode(), Inspection)


def test_a_station_that_is_no_topic_level_is_refused():
    document = json.loads(encode(inspection()))
    document["station"]["line"] = "a/b"
    with pytest.raises(UnreadableMessage, match="topic level"):
        decode(json.dumps(document).encode(), Inspection)


def test_a_score_that_is_no_number_becomes_null_not_broken_json():
    document = json.loads(encode(inspection(anomaly_score=math.nan)))
    assert document["anomaly_score"] is None


# What JSON can hold, and what only looks like JSON.
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, 2**64, 10**400, -0.0])
TEXTS = st.text(max_size=8) | st.sampled_from(["", "a/b", "$", "\0", "x" * 300, "2026-03-02"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
LITERALS = st.sampled_from(
    [
        *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1" * 5_000, b"0" * 40, b"+1"),
        *(b'"\\ud800"', b'"\\udfff\\ud800"', b'"\xed\xa0\x80"', b'"\xff"', b'"\\u0000"', b"'x'"),
        *(b"[" * 3_000, b'{"a":' * 3_000, b"", b",", b"tru", b'"', b"1.0", b"0x10", b"1e-999"),
    ]
)
KINDS_OF = st.sampled_from(KINDS)


def readable_or_refused(payload, kind):
    """Whatever else happens fails the test; what was read can be written and read again."""
    try:
        message = decode(payload, KIND_TYPES[kind])
    except UnreadableMessage:
        return None
    assert decode(encode(message), type(message)) == message
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_each_example_reads_back_as_it_was(kind):
    for example in EXAMPLES[kind]:
        assert type(example.message) is KIND_TYPES[kind]
        assert readable_or_refused(encode(example.message), kind) == example.message


@given(st.binary(max_size=200), KINDS_OF)
def test_any_bytes_are_unreadable(payload, kind):
    with pytest.raises(UnreadableMessage):
        decode(payload, KIND_TYPES[kind])


@given(st.dictionaries(TEXTS, ANYTHING, max_size=4), KINDS_OF)
def test_any_object_is_unreadable_and_no_crash(document, kind):
    text = json.dumps({**document, "schema": SCHEMA})
    with pytest.raises(UnreadableMessage):
        decode(text.encode("utf-8", "surrogatepass"), KIND_TYPES[kind])


def paths_in(document, prefix=()):
    """Every place in a JSON document, the nested ones too."""
    for key, value in document.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths_in(value, (*prefix, key))


@settings(max_examples=400)
@given(st.data())
def test_a_message_with_anything_in_any_place_is_read_or_refused(data):
    kind = data.draw(KINDS_OF)
    document = json.loads(encode(data.draw(st.sampled_from(EXAMPLES[kind])).message))
    path = data.draw(st.sampled_from(sorted(paths_in(document))))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    if data.draw(st.booleans()):
        inner[path[-1]] = data.draw(ANYTHING)
        payload = json.dumps(document).encode()  # NaN and Infinity as the literals of that name
    else:
        inner[path[-1]] = "@here@"
        payload = json.dumps(document).encode().replace(b'"@here@"', data.draw(LITERALS))
    readable_or_refused(payload, kind)


@settings(max_examples=200)
@given(st.data())
def test_a_message_cut_short_or_with_bytes_flipped_is_read_or_refused(data):
    kind = data.draw(KINDS_OF)
    payload = bytearray(encode(EXAMPLES[kind][0].message))
    place = data.draw(st.integers(0, len(payload) - 1))
    readable_or_refused(bytes(payload[:place]), kind)
    payload[place] = data.draw(st.integers(0, 255))
    readable_or_refused(bytes(payload), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_deep_nesting_is_unreadable_and_no_crash(kind):
    for nested in (b'{"schema":' + b"[" * 200_000, b'{"schema":1,"a":' + b'{"a":' * 200_000):
        with pytest.raises(UnreadableMessage):
            decode(nested, KIND_TYPES[kind])


def test_of_a_key_that_stands_twice_the_last_counts_and_schema_is_no_exception():
    once = encode(inspection())
    twice = once[:-1] + b',"sequence":8}'
    assert decode(twice, Inspection).sequence == 8
    with pytest.raises(UnreadableMessage, match="found 2"):
        decode(once[:-1] + b',"schema":2}', Inspection)


@pytest.mark.parametrize("sequence", [0, -1, LARGEST_EXACT + 1, 10**400])
def test_a_sequence_that_json_readers_do_not_keep_exact_is_refused(sequence):
    document = {**json.loads(encode(inspection())), "sequence": sequence}
    with pytest.raises(UnreadableMessage):
        decode(json.dumps(document).encode(), Inspection)


@pytest.mark.parametrize("count", [-1, LARGEST_EXACT + 1, 10**400, b"9" * 5_000])
def test_a_counter_that_nothing_could_count_to_is_refused(count):
    digits = count if isinstance(count, bytes) else str(count).encode()
    payload = encode(EXAMPLES["health"][0].message).replace(b'"pass":41', b'"pass":' + digits)
    with pytest.raises(UnreadableMessage):
        decode(payload, Health)


def test_a_command_with_an_id_without_end_is_refused():
    for field in ("request_id", "inspection_id"):
        document = {"schema": 1, "request_id": "r", "inspection_id": "i", field: "x" * 201}
        with pytest.raises(UnreadableMessage, match="200"):
            decode(json.dumps(document).encode(), Command)


def test_times_are_utc_when_the_clock_at_the_site_is_set_back():
    """At 01:00 UTC the site's clocks went from 03:00 to 02:00: local time comes twice."""
    code = (
        "import time\n"
        "from device_agents.parts import iso_of\n"
        "for moment in (1792888200, 1792891800):\n"
        "    print(time.strftime('%H:%M', time.localtime(moment)), iso_of(moment * 10**9))"
    )
    environment = {**os.environ, "TZ": "CET-1CEST,M3.5.0,M10.5.0/3"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == [
        "02:30 2026-10-25T00:30:00.000000Z",
        "02:30 2026-10-25T01:30:00.000000Z",
    ]


def test_two_files_and_msgspec_are_all_that_a_consumer_needs(tmp_path):
    """Taken out of the project and into an interpreter that sees nothing else of it."""
    contract = Path(edge.messages.__file__).parent
    (tmp_path / "edge").mkdir()
    for name in ("messages.py", "topics.py"):
        shutil.copy(contract / name, tmp_path / "edge" / name)
    # Of the installed packages msgspec alone.
    (tmp_path / "msgspec").symlink_to(Path(msgspec.__file__).parent)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from edge.messages import Inspection, decode\n"
        "message = decode(sys.stdin.buffer.read(), Inspection)\n"
        "print(message.decision, message.station, message.sequence)\n"
        "known = {*sys.stdlib_module_names, 'edge', 'msgspec', '__main__'}\n"
        "print(*{name.split('.')[0] for name in sys.modules} - known)"
    )
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        input=encode(inspection()),
        capture_output=True,
        cwd=tmp_path,
    )
    assert said.stderr == b""
    assert said.stdout.decode().splitlines() == ["fail site/area/line/s1 7", ""]
