"""The ledger: duplicates, gaps, order; and bytes from anybody."""

import json
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agents.consumer import ledger as ledger_module
from device_agents.consumer.ledger import LARGEST_PICTURE_BYTES, Ledger, Sequences
from edge.messages import (
    Command,
    Health,
    Inspection,
    InspectorHealth,
    Picture,
    Presence,
    Timings,
    encode,
)
from edge.topics import KINDS, StationId, topic_of

STATION = StationId("north", "milling", "l1", "s1")
OTHER = StationId("north", "milling", "l1", "s2")
TOPIC = topic_of(STATION, "inspection")


def inspection(sequence: int, *, epoch="e1", station=STATION, decision="pass", **changed):
    message = Inspection(
        inspection_id=f"{epoch}-{sequence}",
        station=station,
        station_epoch=epoch,
        sequence=sequence,
        sample_id=f"p{sequence}",
        part_id="",
        captured_at=None,
        inspected_at="2026-11-21T08:30:00Z",
        decision=decision,
        label="",
        anomaly_score=0.1,
        threshold=0.5,
        class_scores={},
        modalities=("image",),
        reason="",
        bundle_digest="d",
        engine="e",
        timings=Timings(1, 1, 2),
    )
    return msgspec.structs.replace(message, **changed)


def take(ledger: Ledger, *sequences: int, **fields):
    return [
        ledger.take(
            topic_of(fields.get("station", STATION), "inspection"),
            encode(inspection(sequence, **fields)),
        )
        is not None
        for sequence in sequences
    ]


def counts(ledger: Ledger) -> tuple[int, int, int, int, int]:
    return (ledger.inspections, ledger.duplicates, ledger.missing, ledger.late, ledger.foreign)


def test_resent_window_counts_as_duplicates_and_nothing_is_missing():
    ledger = Ledger()
    assert take(ledger, 1, 2, 3, 4, 3, 4, 5) == [True, True, True, True, False, False, True]
    assert counts(ledger) == (5, 2, 0, 0, 0)


def test_gap_is_missing_until_it_is_filled():
    ledger = Ledger()
    take(ledger, 5, 9)
    assert ledger.missing == 3, "what came before we listened is not missing"
    take(ledger, 7)
    assert counts(ledger) == (3, 0, 2, 1, 0)
    take(ledger, 6, 8)
    assert counts(ledger) == (5, 0, 0, 3, 0)


def test_listener_that_joins_in_the_middle_of_a_resend():
    ledger = Ledger()
    take(ledger, 20, 11, 12)
    assert ledger.missing == 7
    take(ledger, *range(13, 21))
    assert counts(ledger)[:3] == (10, 1, 0)


def test_new_epoch_and_other_stations_are_counted_apart():
    ledger = Ledger()
    take(ledger, 7, 8)
    take(ledger, 1, 2, epoch="e2")
    take(ledger, 4, station=OTHER, epoch="e3")
    assert counts(ledger) == (5, 0, 0, 0, 0)
    assert ledger.stations[STATION].decisions["pass"] == 4
    assert ledger.stations[OTHER].decisions["pass"] == 1


def test_duplicate_is_known_by_its_number_when_its_id_was_forgotten(monkeypatch):
    monkeypatch.setattr(ledger_module, "_REMEMBERED_IDS", 10)
    ledger = Ledger()
    take(ledger, *range(1, 101))
    assert take(ledger, 1, 50, 100) == [False, False, False]
    assert counts(ledger) == (100, 3, 0, 0, 0)


def test_presence_and_health_are_kept_per_station():
    ledger = Ledger()
    for state in ("online", "offline"):
        message = Presence(station=STATION, state=state)
        assert ledger.take(topic_of(STATION, "presence"), encode(message)) == message
    health = Health(
        station=STATION, station_epoch="e", sent_at="", outbox_depth=3, counters={"pass": 1}
    )
    ledger.take(topic_of(STATION, "health"), encode(health))
    tally = ledger.stations[STATION]
    assert (tally.presence, tally.waiting, tally.state) == ("offline", 3, "")
    troubled = msgspec.structs.replace(health, inspector=InspectorHealth(state="degraded"))
    ledger.take(topic_of(STATION, "health"), encode(troubled))
    assert tally.state == "degraded"


def test_pictures_are_counted_and_commands_are_nobodys_report():
    ledger = Ledger()
    picture = Picture(station=STATION, inspection_id="e1-1", shows="image", data=b"x" * 200_000)
    assert ledger.take(topic_of(STATION, "picture"), encode(picture)) == picture
    assert ledger.stations[STATION].pictures == ledger.pictures == 1
    command = Command(request_id="r", inspection_id="e1-1")
    assert ledger.take(topic_of(OTHER, "command"), encode(command)) == command
    assert set(ledger.stations) == {STATION}
    assert counts(ledger) == (0, 0, 0, 0, 0), "neither has a place in the sequence"
    big = msgspec.structs.replace(picture, data=bytes(LARGEST_PICTURE_BYTES))
    assert ledger.take(topic_of(STATION, "picture"), encode(big)) is None
    assert "bytes of picture" in ledger.last_foreign


def test_order_is_that_of_the_sequence_whatever_the_clock_says():
    """1970 after a boot, then the right time, then an hour back."""
    ledger = Ledger()
    times = ["1970-01-01T00:00:09Z", "2026-10-25T01:59:59Z", "2026-10-25T00:59:59Z", None]
    for sequence, time in enumerate(times, 1):
        take(ledger, sequence, captured_at=time, inspected_at=time or "2026-10-25T01:00:00Z")
    assert counts(ledger) == (4, 0, 0, 0, 0)
    assert ledger.stations[STATION].last.startswith("pass p4")


@given(st.permutations(range(1, 30)), st.sets(st.integers(1, 29)), st.data())
def test_whatever_order_and_loss_the_count_is_that_of_a_set(order, lost, data):
    sequences, arrived = None, set()
    for number in [n for n in order if n not in lost]:
        again = data.draw(st.booleans())
        for _ in range(1 + again):
            sequences = sequences or Sequences(number)
            verdict = sequences.take(number)
            assert (verdict == "duplicate") == (number in arrived)
            arrived.add(number)
        assert sequences.missing == max(arrived) - min(arrived) + 1 - len(arrived)


@pytest.mark.parametrize(
    ("topic", "payload", "why"),
    [
        ("other/topic", b"{}", "not a topic of ours"),
        ("", b"{}", "not a topic of ours"),
        (TOPIC, b"", "truncated"),
        (TOPIC, b"{}", "schema 1 expected, found none"),
        (TOPIC, b"\xff\xfe", ""),
        (TOPIC, b"[1]", "Expected `object`"),
        (TOPIC, b"[" * 100_000, "100000 bytes"),
        (TOPIC, b'{"a":' * 10_000, ""),
        (TOPIC, json.dumps({"schema": 99}).encode(), "schema 1 expected, found 99"),
        (TOPIC, encode(inspection(1, station=OTHER)), "on the topic of"),
        (TOPIC, encode(inspection(0)), "sequence"),
        (TOPIC, encode(inspection(-5)), "sequence"),
        (TOPIC, encode(inspection(1)).replace(b'"sequence":1', b'"sequence":1' + b"0" * 400), ""),
        (TOPIC, encode(inspection(1, inspection_id="x" * 201)), "length <= 200"),
        (TOPIC, encode(inspection(1, inspection_id="")), "length >= 1"),
        (topic_of(STATION, "picture"), encode(inspection(1)), "shows"),
        (topic_of(STATION, "command"), encode(inspection(1)), "request_id"),
        (TOPIC, encode(inspection(1, decision="maybe")), "maybe"),
        (TOPIC, encode(Presence(station=STATION, state="online")), "inspection_id"),
        (topic_of(STATION, "health"), encode(inspection(1)), "sent_at"),
    ],
)
def test_foreign_payload_is_counted_and_survived(topic, payload, why):
    ledger = Ledger()
    assert ledger.take(topic, payload) is None
    assert counts(ledger) == (0, 0, 0, 0, 1)
    assert why in ledger.last_foreign
    take(ledger, 1)
    assert ledger.inspections == 1


def test_field_of_a_later_version_is_ignored():
    payload = encode(inspection(1)).replace(
        b'{"inspection_id"', b'{"new_field":[1],"inspection_id"'
    )
    assert Ledger().take(TOPIC, payload) == inspection(1)


@settings(max_examples=300)
@given(st.binary(max_size=300), st.sampled_from([*KINDS, "x"]))
def test_any_bytes_on_any_topic(payload, kind):
    ledger = Ledger()
    ledger.take(TOPIC.replace("inspection", kind), payload)
    assert ledger.inspections + ledger.foreign == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(json.loads(encode(inspection(1))))), JSON)
def test_message_with_any_value_in_any_field(name, value):
    message = {**json.loads(encode(inspection(1))), name: value}
    ledger = Ledger()
    ledger.take(TOPIC, json.dumps(message).encode())
    assert ledger.inspections + ledger.foreign == 1
    assert ledger.missing == 0


def test_hostile_station_cannot_make_the_ledger_grow(monkeypatch):
    monkeypatch.setattr(ledger_module, "_STATIONS", 3)
    ledger = Ledger()
    for number in range(10):
        take(ledger, 1, station=StationId("a", "b", "c", f"s{number}"))
    assert len(ledger.stations) == 3
    assert ledger.foreign == 7
    first = StationId("a", "b", "c", "s0")
    for number in range(20):
        take(ledger, 5, 9, station=first, epoch=f"epoch{number}")
    assert len(ledger.stations[first].epochs) == 4
    assert ledger.stations[first].missing == 60, "forgotten epochs keep their count"
    take(ledger, *range(10, 5_000, 2), station=first, epoch="epoch19")
    assert len(ledger.stations[first].epochs["epoch19"]._holes) <= 200
    assert ledger.stations[first].missing == 60 + 2_494


def flood(ledger, station):
    """Everything that a station can do to be remembered."""
    for epoch in "abcde":
        for sequence in range(1, 1_000, 2):
            message = inspection(
                sequence,
                station=station,
                epoch=epoch + "\U0001f600" * 199,
                inspection_id=f"{epoch}{sequence}".ljust(200, "\U0001f600"),
                reason="\U0001f600" * 10_000,
                label="\U0001f600" * 1_000,
            )
            ledger.take(topic_of(station, "inspection"), encode(message))
    health = Health(
        station=station,
        station_epoch="e",
        sent_at="",
        outbox_depth=1,
        counters={str(number): number for number in range(4_000)},
    )
    ledger.take(topic_of(station, "health"), encode(health))
    picture = Picture(station=station, inspection_id="i", shows="image", data=bytes(1 << 20))
    ledger.take(topic_of(station, "picture"), encode(picture))
    for number in range(1_000):
        ledger.take(topic_of(station, "inspection"), b"\xff" * number)
        ledger.take(f"{topic_of(station, 'inspection')}/{number}", b"{}")


def kept_bytes(act, stations) -> float:
    """Memory that a ledger keeps for each of so many stations."""
    ledger = Ledger()
    tracemalloc.start()
    try:
        for number in range(stations):
            act(ledger, StationId("north", "milling", "l1", f"s{number}"))
        assert len(ledger.stations) == stations
        return tracemalloc.get_traced_memory()[0] / stations
    finally:
        tracemalloc.stop()


def test_memory_of_a_station_is_bounded_whatever_it_sends():
    usual = kept_bytes(lambda ledger, s: take(ledger, *range(1, 401), station=s), 20)
    worst = kept_bytes(flood, 2)
    print(f"bytes kept for a station: {usual:.0f} as a rule, {worst:.0f} at worst")
    assert 5_000 < usual < 40_000
    assert usual < worst < 200_000


def test_flooding_station_takes_nothing_from_the_others():
    ledger = Ledger()
    take(ledger, *range(1, 101), station=OTHER)
    flood(ledger, STATION)
    assert not any(take(ledger, *range(1, 101), station=OTHER)), "still known as duplicates"
    assert ledger.stations[OTHER].duplicates == 100
    assert ledger.stations[OTHER].foreign == 0
    assert ledger.stations[STATION].foreign == 1_000, "its own topics, counted to it"
    assert ledger.foreign == 2_000
