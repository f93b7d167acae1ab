"""Readings that no sensor gives by itself, and real ones, none of which is refused."""

import os
from pathlib import Path

import numpy as np
import pytest

from device_agents.pairing.plausible import Plausibility
from edge.recording.format import read_readings
from edge.reference import (
    FrameReference,
    Reference,
    Spread,
    channel_reference,
    window_figures,
)
from edge.sample import Channel
from edge.simulate.line import LineOrder, parts_of, simulate

DATA = Path(os.environ.get("EDGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
READINGS = 2048
NAMES = ("drive_end", "load")


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, READINGS)).astype(np.float32)


def kind_of(values, plausibility=None) -> str:
    fault = (plausibility or Plausibility()).fault_of(NAMES, list(values), "main")
    return "" if fault is None else fault.kind


def reference_of_windows(windows, names=NAMES) -> Reference:
    figures = [window_figures(window) for window in windows]
    still = Spread(0.0, 0.0)
    return Reference(
        split="val",
        samples=len(windows),
        parts=len(windows),
        frame=FrameReference((8, 8), still, still, still, still),
        channels=tuple(
            channel_reference(name, [window[index] for window in windows], figures, index)
            for index, name in enumerate(names)
        ),
    )


def test_plain_noise_is_plausible():
    assert kind_of(noise()) == ""


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_single_reading_that_is_no_number_is_named_with_its_channel(bad):
    values = noise()
    values[1, 2047] = bad
    fault = Plausibility().fault_of(NAMES, list(values), "main")
    assert fault.kind == "not_finite_window"
    assert fault.reason == "1 NaN or infinite of 4096 readings (load)"


@pytest.mark.parametrize("level", [0.0, 1.25])
def test_constant_channel_is_stuck(level):
    values = noise()
    values[0] = level
    fault = Plausibility().fault_of(NAMES, list(values), "main")
    assert fault.kind == "stuck_window"
    assert fault.reason == "drive_end unchanged for 2048 of 2048 readings"


def test_stretch_without_change_is_stuck_where_the_channel_moves_otherwise():
    values = noise()
    values[1, 300:500] = values[1, 300]
    assert kind_of(values) == "stuck_window"
    values[1, 300:500] = 0.0  # without a reference this may be a channel that rests
    assert kind_of(values) == ""
    assert kind_of(values, Plausibility(reference_of_windows([noise(1), noise(2)]))) != ""


def test_slow_channel_is_not_stuck():
    values = noise()
    values[1] = np.repeat(np.arange(8), 256)  # changes seven times in the window
    assert kind_of(values) == ""


def test_channel_that_stands_still_by_nature_says_so_in_the_reference():
    normal = [noise(seed) for seed in range(12)]
    for window in normal:
        window[1] = 20.0  # a set point
    here = noise(99)
    here[1] = 20.0
    assert kind_of(here) == "stuck_window"
    plausibility = Plausibility(reference_of_windows(normal))
    assert kind_of(here, plausibility) == ""
    here[0] = 1.0
    assert kind_of(here, plausibility) == "stuck_window"


def test_clipping_is_seen_unless_the_model_was_trained_with_it():
    def clipped(seed):
        return np.clip(noise(seed), -1.0, 1.0)

    fault = Plausibility().fault_of(NAMES, list(clipped(1)), "main")
    assert fault.kind == "clipped_window"
    assert "drive_end has 1" in fault.reason
    plausibility = Plausibility(reference_of_windows([clipped(seed) for seed in range(20, 40)]))
    assert kind_of(clipped(2), plausibility) == ""
    assert kind_of(np.clip(noise(3), -0.3, 0.3), plausibility) == "clipped_window"


def test_repeat_is_seen_on_one_channel_and_once_only_where_the_next_is_fresh():
    plausibility = Plausibility()
    first, second = noise(1), noise(2)
    second[1] = first[1]
    assert kind_of(first, plausibility) == ""
    fault = plausibility.fault_of(NAMES, list(second), "main")
    assert fault.kind == "repeated_window"
    assert "load gives the same 2048 readings" in fault.reason
    assert kind_of(noise(3), plausibility) == ""


def test_sensor_that_writes_into_the_same_memory_is_not_taken_for_a_repeat():
    plausibility = Plausibility()
    memory = noise(1)
    assert kind_of(memory, plausibility) == ""
    memory[:] = noise(2)
    assert kind_of(memory, plausibility) == ""


def test_every_stuck_window_of_the_simulated_line_is_found_and_no_other(tmp_path):
    order = LineOrder(parts=400, seed=11, size=(32, 32))
    recording = simulate(order, tmp_path)
    channels = recording.header.channels
    windows = {
        row.sample_id: read_readings(recording.path_of(row.sensor), channels)
        for row in recording.rows
        if row.sensor
    }
    names = [channel.name for channel in channels]
    normal = [
        windows[row.sample_id]
        for row in recording.rows
        if row.split == "val" and row.label == "ok" and row.sensor
    ]
    truth = {part.name for part in parts_of(order) if part.window == "stuck"}
    assert len(truth) > 3
    for plausibility in (Plausibility(), Plausibility(reference_of_windows(normal, names))):
        found = {
            name: fault.kind
            for name, values in windows.items()
            if (fault := plausibility.fault_of(names, list(values), "main"))
        }
        assert set(found) == truth
        assert set(found.values()) == {"stuck_window"}


@pytest.mark.real_data
def test_no_real_window_is_refused():
    files = sorted((DATA / "ballscrew" / "sensors").glob("*.npy"))
    if not files:
        pytest.skip(f"no {DATA / 'ballscrew'}: false alarms are NOT counted on real windows")
    channels = (Channel("drive_end", "g", 12000.0), Channel("fan_end", "g", 12000.0))
    plausibility = Plausibility()
    names = [channel.name for channel in channels]
    refused = [
        path.name
        for path in files
        if plausibility.fault_of(names, list(read_readings(path, channels)), "main")
    ]
    assert len(files) > 1000
    assert refused == []
