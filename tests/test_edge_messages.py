"""Messages: what a consumer can rely on, and what it must survive."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.messages import (
    KIND_TYPES,
    SCHEMA,
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


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_unreadable(payload):
    with pytest.raises(UnreadableMessage):
        decode(payload, Inspection)


def test_deep_nesting_is_unreadable_and_no_crash():
    with pytest.raises(UnreadableMessage):
        decode(b'{"schema":' + b"[" * 200_000, Inspection)
