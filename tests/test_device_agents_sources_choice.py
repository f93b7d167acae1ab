"""Which source an entry of the station file becomes."""

import pytest
from small_station import GOOD, spec_of, write_squares

from device_agents.parts import PartSource
from device_agents.sources.choice import source_from
from device_agents.sources.live import LiveSource
from device_agents.sources.playback import Playback
from device_agents.station import Source
from edge.errors import InputError


def members_of(source: PartSource) -> tuple[str, float | None, float]:
    """What the loop reads of any source."""
    assert callable(source.parts)
    return source.name, source.parts_per_second, source.tolerance_ms


def test_recording_is_played_back(tmp_path):
    write_squares(tmp_path / "rec", [GOOD], rate=10)
    source = source_from("left", Source(recording=str(tmp_path / "rec")), spec_of(), paced=False)
    assert isinstance(source, Playback)
    assert members_of(source) == ("left", 10.0, 25.0)


@pytest.mark.parametrize("key", ["gstreamer", "v4l2"])
def test_camera_and_pipeline_are_live(key):
    image_only = spec_of(sensor=False)
    stated = Source(**{key: "/dev/video0"}, frames_per_second=25.0)
    source = source_from("right", stated, image_only, paced=True)
    assert isinstance(source, LiveSource)
    assert members_of(source) == ("right", 25.0, 10.0)
    unstated = source_from("main", Source(**{key: "/dev/video0"}), image_only, paced=True)
    assert members_of(unstated) == ("main", None, 10.0)


def test_source_that_does_not_fit_is_refused_by_its_table():
    with pytest.raises(InputError, match=r"sources\.right\.sensor_gstreamer"):
        source_from("right", Source(v4l2="/dev/video0"), spec_of(), paced=True)
