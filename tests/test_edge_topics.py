"""Topics: one level per part of a station's place, and the way back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_station import needs_mosquitto

from device_agents.broker import running_broker
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.link import Link
from edge.topics import (
    KINDS,
    LONGEST_PATH,
    ROOT,
    StationId,
    filter_for,
    station_and_kind,
    topic_of,
)

FORBIDDEN = "/+#\ufffe\uffff" + "".join(map(chr, range(0xFDD0, 0xFDF0)))
levels = st.text(
    st.characters(exclude_characters=FORBIDDEN, exclude_categories=("Cc", "Cs")),
    min_size=1,
    max_size=40,
).filter(lambda text: not text.startswith("$"))
stations = st.builds(StationId, levels, levels, levels, levels)


@given(stations, st.sampled_from(KINDS))
def test_a_topic_leads_back_to_its_station_and_kind(station, kind):
    assert station_and_kind(topic_of(station, kind)) == (station, kind)


LEVELS_THAT_ARE_NONE = ["", "a/b", "+", "a#", "$SYS", "a\0", "a\n", "\x7f", "\ud800", "\ufffe"]


@pytest.mark.parametrize("level", LEVELS_THAT_ARE_NONE)
def test_a_place_that_is_no_topic_level_is_refused(level):
    with pytest.raises(ValueError, match="one MQTT topic level"):
        StationId("site", "area", level, "s1")


def test_a_place_longer_than_any_consumer_takes_is_refused():
    StationId("s" * (LONGEST_PATH - 6), "a", "l", "t")
    with pytest.raises(ValueError, match="200 characters or fewer together, not 201"):
        StationId("s" * (LONGEST_PATH - 5), "a", "l", "t")


@needs_mosquitto
@settings(max_examples=30, deadline=None)
@given(station=stations)
def test_any_place_that_we_take_is_one_that_the_broker_takes(station, broker):
    """A topic that MQTT forbids would end the connection, again and again."""
    with Link(BrokerAddress("127.0.0.1", broker.port), "sender") as link:
        link.open()
        link.publish(topic_of(station, "inspection"), b"{}", qos=1)
        for _ in range(100):
            link.step(0.05)
            if answers := link.take_acknowledged():
                break
        assert link.ended is None
        assert [code for _, code in answers] == [0x10], "no subscriber, and nothing else amiss"


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with running_broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


mostly_ours = st.builds(
    lambda *parts: "/".join(parts),
    st.sampled_from([ROOT, "orin-inspect/v2", "", "$share/x"]),
    *[st.text(max_size=4) | st.sampled_from(["a", "", "+", "#", "$SYS", "\ud800", "a\n"])] * 4,
    st.sampled_from([*KINDS, "", "x", "inspection/more"]),
)


@given(st.text(max_size=60) | mostly_ours)
def test_any_topic_is_one_of_ours_or_none(topic):
    found = station_and_kind(topic)
    assert found is None or topic_of(*found) == topic


@pytest.mark.parametrize(
    "topic",
    [
        f"{ROOT}/a/b/c/d/order",
        f"{ROOT}/a/b/c/d/inspection/more",
        f"{ROOT}/a/b/c//inspection",
        "orin-inspect/v2/a/b/c/d/inspection",
    ],
)
def test_topics_of_others_are_not_ours(topic):
    assert station_and_kind(topic) is None


def test_the_filter_has_a_level_for_each_part():
    station = StationId("a", "b", "c", "d")
    assert filter_for("health").count("/") == topic_of(station, "health").count("/")
    assert filter_for().endswith("/+")
