"""The whole loop with readings and frames unlike the reference: told, counted, and judged alike."""

from threading import Event

import msgspec
import numpy as np
import pytest
from small_station import (
    CHANNELS,
    READINGS,
    SIZE,
    spec_of,
    write_bundle,
    write_squares,
    write_station,
)

from device_agents.inspector.loop import run_inspector
from device_agents.outbox.reader import OutboxReader
from device_agents.station import station_from_toml
from edge.bundle import Bundle, write_manifest
from edge.messages import Inspection, decode
from edge.reference import FrameReference, Reference, Spread, channel_reference, window_figures
from edge.sample import Channel

PARTS = 90
STUCK, BROKEN, REPEATED, MISSING = 20, 30, 40, 50
FAST_HZ, FAST_READINGS = 6400.0, 160  # four times the model's rate, and longer than its window


def noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(0, 0.02, (2, FAST_READINGS)).astype(np.float32)


def reference_of_brighter_parts() -> Reference:
    # White noise keeps a quarter of its power where three quarters of its band are taken away.
    windows = [noise(1000 + number)[:, :READINGS] / 2 for number in range(60)]
    figures = [window_figures(window) for window in windows]
    dark = Spread(0.0, 0.0)
    return Reference(
        split="val",
        samples=60,
        parts=60,
        frame=FrameReference((SIZE, SIZE), dark, Spread(0.5, 0.02), dark, dark),
        channels=tuple(
            channel_reference(channel.name, [window[index] for window in windows], figures, index)
            for index, channel in enumerate(CHANNELS)
        ),
    )


def write_line(folder) -> None:
    """Parts of one grey level, each with readings of its own at four times the model's rate."""
    fast = tuple(Channel(c.name, c.unit, FAST_HZ) for c in CHANNELS)
    recording = write_squares(
        folder / "rec", [40] * PARTS, rate=100, channels=fast, without_sensor=[MISSING]
    )
    rows_file = folder / "rec" / "samples.jsonl"
    rows = rows_file.read_text().splitlines()
    for number in range(PARTS):
        readings = noise(number - (number == REPEATED))
        if number == STUCK:
            readings[1] = 0.25
        if number == BROKEN:
            readings[0, 80] = np.nan
        np.save(recording.path_of(f"{number}.npy"), readings)
        rows[number] = rows[number].replace("still.npy", f"{number}.npy")
    rows_file.write_text("\n".join(rows) + "\n")


def inspected(folder, reference) -> tuple[dict[str, int], list[Inspection]]:
    """Run the inspector over the line with this reference in the bundle."""
    folder.mkdir()
    write_line(folder)
    bundle = write_bundle(folder / "bundle", spec_of(image_only=True))
    manifest = msgspec.structs.replace(bundle.manifest, reference=reference)
    write_manifest(folder / "bundle", manifest)
    assert Bundle.open(folder / "bundle").manifest.reference == reference
    write_station(folder, broker="[loop]\nqueue = 200")  # a busy machine loses none
    counters = run_inspector(station_from_toml(folder / "station.toml"), Event())
    reader = OutboxReader.open(folder / "outbox.sqlite")
    records = reader.records_after(0, PARTS + 1)
    reader.close()
    return counters, [decode(payload, Inspection) for _, payload in records]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return inspected(tmp_path_factory.mktemp("told") / "s", reference_of_brighter_parts())


def test_windows_of_another_rate_are_judged_with_both_modalities(told):
    counters, found = told
    assert counters["inspected"] == len(found) == PARTS
    assert found[0].modalities == ("image", "sensor")
    assert found[0].reason == ""
    # The tiny model adds a tenth of the readings' mean magnitude to the brightness.
    assert found[0].anomaly_score == pytest.approx(40 / 255 + 0.1 * 0.016 / 2, abs=5e-4)
    assert sum("sensor" in one.modalities for one in found) == PARTS - 4


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (STUCK, "stuck_window", "implausible readings: load unchanged for "),
        (BROKEN, "not_finite_window", "implausible readings: 1 NaN or infinite of "),
        (REPEATED, "repeated_window", "implausible readings: drive_end gives the same "),
        (MISSING, "no_window", "no sensor window"),
    ],
)
def test_part_without_a_trustworthy_window_is_marked_and_counted(told, number, kind, reason):
    counters, found = told
    one = found[number]
    assert (one.decision, one.modalities, one.threshold) == ("pass", ("image",), 0.6)
    assert one.reason.startswith(f"judged by image alone: {reason}")
    assert counters[f"image_only_{kind}"] == 1
    assert counters["image_only"] == 4


def test_drift_is_told_in_the_inspections_and_changes_no_verdict(told, tmp_path):
    _, found = told
    assert found[10].drift == ()
    assert found[-1].drift == ("exposure",)
    _, without = inspected(tmp_path / "without", None)
    assert {one.drift for one in without} == {()}

    def verdict(one: Inspection) -> tuple[object, ...]:
        return one.decision, one.label, one.anomaly_score, one.threshold, one.class_scores

    assert list(map(verdict, found)) == list(map(verdict, without))
