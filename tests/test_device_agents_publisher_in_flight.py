"""The publisher's rules without a network: what is settled, what goes again, who is to blame."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agents.mqtt.refusals import PROTOCOL_ENDS, answer_to
from device_agents.publisher.in_flight import Distrust, InFlight, Suspicion


@pytest.mark.parametrize(
    ("code", "tries", "answer"),
    [
        (0x00, 1, "settled"),
        (0x10, 1, "settled"),  # nobody listens: not the station's business
        (0x87, 1, "again"),  # not authorised: every record would fare the same
        (0x97, 99, "again"),
        (0x80, 1, "again"),
        (0x80, 5, "refused for good"),
        (0x83, 5, "refused for good"),
        (0x90, 1, "refused for good"),
        (0x99, 1, "refused for good"),
    ],
)
def test_reason_code_decides_what_becomes_of_the_record(code, tries, answer):
    assert answer_to(code, tries) == answer


@given(st.lists(st.sampled_from(["send", "ack_first", "ack_last", "cut"]), max_size=200))
def test_cursor_never_passes_a_record_that_is_not_settled(steps):
    in_flight, settled, message_id = InFlight(10), set(), 0
    under_way: dict[int, int] = {}
    for step in steps:
        if step == "send":
            message_id += 1
            under_way[message_id] = in_flight.last_sent + 2  # numbers may have gaps
            in_flight.sent(under_way[message_id], message_id)
        elif step == "cut":
            in_flight.rewind()
            under_way.clear()
            assert in_flight.last_sent == in_flight.acknowledged
        elif under_way:
            chosen = min(under_way) if step == "ack_first" else max(under_way)
            settled.add(under_way.pop(chosen))
            in_flight.settle(chosen)
        assert not [s for s in under_way.values() if s <= in_flight.acknowledged]
        assert in_flight.acknowledged <= in_flight.last_sent
        assert in_flight.oldest == (min(under_way.values()) if under_way else None)
        assert len(in_flight) == len(under_way)


def test_acknowledgement_out_of_order_moves_the_cursor_only_when_the_oldest_came():
    in_flight = InFlight(0)
    for sequence in (1, 2, 3):
        in_flight.sent(sequence, 100 + sequence)
    in_flight.settle(103)
    in_flight.settle(102)
    assert in_flight.acknowledged == 0
    in_flight.settle(101)
    assert in_flight.acknowledged == 3
    in_flight.settle(101)
    assert in_flight.acknowledged == 3


def test_record_that_makes_the_broker_hang_up_is_found_alone_on_the_line():
    suspicion = Suspicion()
    end = PROTOCOL_ENDS[0]
    assert suspicion.connection_ended(end, 7) is None
    assert not suspicion.narrow
    assert suspicion.connection_ended(end, 7) is None
    assert suspicion.narrow
    # One at a time, 7 gets through; 9 is the culprit.
    suspicion.settled(7)
    assert suspicion.connection_ended(end, 9) is None
    assert suspicion.narrow
    assert suspicion.connection_ended(end, 9) is None
    assert suspicion.connection_ended(end, 9) == 9
    assert not suspicion.narrow


def test_suspicion_is_dropped_after_a_clean_run():
    suspicion = Suspicion()
    for _ in range(2):
        suspicion.connection_ended(PROTOCOL_ENDS[0], 7)
    assert suspicion.narrow
    for sequence in range(7, 107):
        suspicion.settled(sequence)
    assert not suspicion.narrow
    assert suspicion.connection_ended(PROTOCOL_ENDS[0], 200) is None
    assert not suspicion.narrow


def test_network_that_breaks_convicts_nobody():
    suspicion = Suspicion()
    for _ in range(50):
        assert suspicion.connection_ended(0x80, 7) is None
        assert suspicion.connection_ended(PROTOCOL_ENDS[0], None) is None
    assert not suspicion.narrow


@given(st.floats(0, 5), st.lists(st.tuples(st.floats(0, 2), st.integers(0, 50)), min_size=1))
def test_what_is_believed_was_acknowledged_long_enough_ago(seconds, steps):
    distrust, now_s, acknowledged, history = Distrust(seconds, 0), 100.0, 0, [(0.0, 0)]
    for pause_s, more in steps:
        now_s, acknowledged = now_s + pause_s, acknowledged + more
        history.append((now_s, acknowledged))
        safe = distrust.safe(acknowledged, now_s)
        old = [up_to for at_s, up_to in history if at_s <= now_s - seconds]
        assert safe <= max(old, default=0)
        assert safe == max(old, default=0) or more == 0, "nor later than needed"
    # A hair later: the sum of two floats may lie below what it stands for.
    assert distrust.rewind(acknowledged, now_s + seconds + 1e-6) == acknowledged


def test_without_distrust_an_acknowledgement_is_believed_at_once():
    distrust = Distrust(0.0, 5)
    assert distrust.safe(9, 1.0) == 9
    assert distrust.rewind(12, 1.0) == 12
