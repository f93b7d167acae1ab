"""Hostile bytes on the command topic: refused with a reason, survived, and bounded."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agents.publisher.commands import (
    LARGEST_COMMAND_BYTES,
    MOST_WAITING,
    Refused,
    Waiting,
    command_from,
)
from edge.messages import Command, encode

GOOD = Command(request_id="r1", inspection_id="epoch-17")
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


def assert_harmless(answer):
    if isinstance(answer, Refused):
        assert answer.why.isprintable()
        assert len(answer.why) <= 300
    else:
        assert "/" not in answer.inspection_id
        assert answer.inspection_id.isprintable()
        assert len(answer.request_id) <= 200
        assert set(answer.want) <= {"image", "heat_map"}


@given(st.binary(max_size=2 * LARGEST_COMMAND_BYTES))
def test_any_bytes_get_an_answer(payload):
    assert_harmless(command_from(payload))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "request_id": ANY_JSON | st.text(),
            "inspection_id": ANY_JSON | st.text() | st.just("e-1"),
            "want": ANY_JSON | st.lists(st.sampled_from(["image", "heat_map", "all"])),
            "schema": ANY_JSON | st.just(1),
        },
    )
)
def test_any_json_of_the_right_keys_gets_an_answer(fields):
    assert_harmless(command_from(msgspec.json.encode(fields)))


@given(st.integers(0, 200), st.integers(0, 255))
def test_command_with_one_byte_changed_gets_an_answer(at, byte):
    payload = bytearray(encode(GOOD))
    payload[at % len(payload)] = byte
    assert_harmless(command_from(bytes(payload)))


def test_command_as_the_contract_has_it_is_taken():
    assert command_from(encode(GOOD)) == GOOD
    plain = b'{"schema":1,"request_id":"r","inspection_id":"e-1","of":"tomorrow"}'
    assert command_from(plain) == Command(request_id="r", inspection_id="e-1")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"inspection_id": "../../etc/passwd"}, "inspection_id"),
        ({"inspection_id": "..\\secret"}, "inspection_id"),
        ({"inspection_id": ".hidden"}, "inspection_id"),
        ({"inspection_id": ""}, ""),
        ({"inspection_id": "e-1\0.jpg"}, "inspection_id"),
        ({"inspection_id": "e" * 201}, ""),
        ({"inspection_id": "e" * 101}, "inspection_id"),  # the pictures' own rule for ids
        ({"inspection_id": "epoch 17"}, "inspection_id"),
        ({"request_id": "r" * 201}, "request_id"),
        ({"want": ()}, "nothing wanted"),
        ({"want": ("image",) * 600}, "bytes"),
        ({"want": ("window",)}, "want"),
        ({"schema": 2}, "schema"),
    ],
)
def test_command_that_no_consumer_should_send_is_refused_with_the_reason(changed, why):
    payload = msgspec.json.encode({**msgspec.to_builtins(GOOD), **changed})
    refused = command_from(payload)
    assert isinstance(refused, Refused)
    assert why in refused.why


def test_retained_command_is_not_answered_at_every_connection():
    refused = command_from(encode(GOOD), retained=True)
    assert isinstance(refused, Refused)
    assert "retain" in refused.why


def test_deep_nesting_is_refused_not_followed():
    assert isinstance(command_from(b'{"schema":1,"x":' + b"[" * 4000), Refused)


def test_more_commands_than_may_wait_are_refused_and_the_first_ones_kept():
    waiting = Waiting()
    commands = [Command(request_id=str(n), inspection_id="e-1") for n in range(MOST_WAITING + 3)]
    refused = [waiting.add(command) for command in commands]
    assert [r is None for r in refused] == [True] * MOST_WAITING + [False] * 3
    assert [waiting.next() for _ in range(len(waiting))] == commands[:MOST_WAITING]
    assert waiting.next() is None
