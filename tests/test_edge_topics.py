"""Topics: one level per part of a station's place, and the way back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.topics import KINDS, ROOT, StationId, filter_for, station_and_kind, topic_of

levels = st.text(st.characters(exclude_characters="/+#\0"), min_size=1).filter(
    lambda text: not text.startswith("$")
)
stations = st.builds(StationId, levels, levels, levels, levels)


@given(stations, st.sampled_from(KINDS))
def test_a_topic_leads_back_to_its_station_and_kind(station, kind):
    assert station_and_kind(topic_of(station, kind)) == (station, kind)


@pytest.mark.parametrize("level", ["", "a/b", "+", "a#", "$SYS", "a\0"])
def test_a_place_that_is_no_topic_level_is_refused(level):
    with pytest.raises(ValueError, match="one MQTT topic level"):
        StationId("site", "area", level, "s1")


@given(st.text(max_size=60))
def test_any_topic_is_one_of_ours_or_none(topic):
    found = station_and_kind(topic)
    assert found is None or topic_of(*found) == topic


@pytest.mark.parametrize(
    "topic",
    [
        f"{ROOT}/a/b/c/d/command",
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
