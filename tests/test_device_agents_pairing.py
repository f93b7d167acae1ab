"""Pairing: which window belongs to a frame, and what becomes of a frame without one."""

import numpy as np
import pytest
from small_station import CHANNELS, READINGS, SIZE, spec_of

from device_agents.cameras.recording import Shot
from device_agents.pairing import Paired, Unpaired, pair, tolerance_for
from device_agents.sensors.recording import Reading
from edge.errors import InputError
from edge.sample import Frame, Window

MS = 1_000_000
FRAME = Frame(np.zeros((SIZE, SIZE, 3), np.uint8), 1_000 * MS)
SHOT = Shot("p1", "part1", None, FRAME)


def reading_at(ms: float) -> Reading:
    values = np.zeros((len(CHANNELS), READINGS), np.float32)
    return Reading(Window(values, CHANNELS, int(ms * MS)))


@pytest.mark.parametrize("ms", [995.0, 1_000.0, 1_005.0])
def test_window_within_the_tolerance_is_paired(ms):
    paired = pair(SHOT, reading_at(ms), spec_of(), 5.0)
    assert isinstance(paired, Paired)
    assert paired.sample.window is not None
    assert (paired.sample.sample_id, paired.sample.part_id) == ("p1", "part1")
    assert paired.remark == ""


@pytest.mark.parametrize(
    ("reading", "kind"),
    [
        (reading_at(1_005.1), "invalid_stale_window"),
        (reading_at(994.9), "invalid_stale_window"),
        (Reading(None), "invalid_no_window"),
    ],
)
def test_without_a_window_only_an_image_only_threshold_may_judge(reading, kind):
    unpaired = pair(SHOT, reading, spec_of(), 5.0)
    assert isinstance(unpaired, Unpaired)
    assert unpaired.kind == kind
    assert "no threshold for image alone" in unpaired.reason
    alone = pair(SHOT, reading, spec_of(image_only=True), 5.0)
    assert isinstance(alone, Paired)
    assert alone.sample.window is None
    assert alone.remark.startswith("judged by image alone")


def test_broken_window_is_never_judged_by_image_alone():
    unpaired = pair(SHOT, Reading(None, "cut short"), spec_of(image_only=True), 5.0)
    assert unpaired == Unpaired("invalid_window_unreadable", "cut short")


def test_frame_that_could_not_be_read_is_not_judged():
    shot = Shot("p1", "part1", None, None, "frame unreadable: truncated")
    unpaired = pair(shot, reading_at(1_000), spec_of(), 5.0)
    assert unpaired == Unpaired("invalid_frame_unreadable", "frame unreadable: truncated")


def test_model_without_a_sensor_needs_no_window():
    assert isinstance(pair(SHOT, Reading(None), spec_of(sensor=False), 5.0), Paired)


def test_tolerance_must_not_reach_the_neighbour():
    assert tolerance_for(20.0, None) == 5.0
    assert tolerance_for(20.0, 9.0) == 9.0
    with pytest.raises(InputError, match="half the time between two parts"):
        tolerance_for(20.0, 10.0)
