"""The inspector: every part leaves a record, and none is a pass that could not be judged."""

import math
from threading import Event

import msgspec
import numpy as np
import pytest
from PIL import Image
from small_station import BAD, GOOD, edge, spec_of, write_bundle, write_squares, write_station

from device_agents.inspector.loop import run_inspector
from device_agents.outbox.reader import OutboxReader
from device_agents.station import station_from_toml
from edge.bundle import INT8_FILE, Bundle, entries_of, write_manifest
from edge.errors import InputError, MachineError
from edge.messages import Inspection, decode
from edge.model_spec import ImageInput


def inspections_in(folder) -> list[Inspection]:
    reader = OutboxReader.open(folder / "outbox.sqlite")
    records = reader.records_after(0, 10_000)
    reader.close()
    return [decode(payload, Inspection) for _, payload in records]


def run(folder) -> dict[str, int]:
    return run_inspector(station_from_toml(folder / "station.toml"), Event())


def test_parts_become_records_with_identity_and_timings(tmp_path):
    write_squares(tmp_path / "rec", [GOOD, BAD, GOOD], rate=200)
    bundle = write_bundle(tmp_path / "bundle")
    write_station(tmp_path)
    counters = run(tmp_path)
    found = inspections_in(tmp_path)
    assert [i.decision for i in found] == ["pass", "fail", "pass"]
    assert [i.label for i in found] == ["good", "scratch", "good"]
    assert [i.sequence for i in found] == [1, 2, 3]
    assert [i.sample_id for i in found] == ["p0000", "p0001", "p0002"]
    assert len({i.station_epoch for i in found}) == 1
    assert {i.bundle_digest for i in found} == {bundle.digest}
    assert found[1].anomaly_score == pytest.approx(BAD / 255)
    assert found[1].modalities == ("image", "sensor")
    assert set(found[1].class_scores) == {"good", "scratch", "dent"}
    assert 0 < found[1].timings.infer_ms <= found[1].timings.total_ms
    assert found[0].captured_at < found[0].inspected_at
    assert (counters["inspected"], counters["pass"], counters["fail"]) == (3, 2, 1)


def test_restarted_inspector_continues_the_sequence(tmp_path):
    write_squares(tmp_path / "rec", [GOOD] * 3, rate=500)
    write_bundle(tmp_path / "bundle")
    write_station(tmp_path)
    run(tmp_path)
    assert run(tmp_path)["inspected"] == 6
    found = inspections_in(tmp_path)
    assert [i.sequence for i in found] == [1, 2, 3, 4, 5, 6]
    assert len({i.inspection_id for i in found}) == 6


def test_unfit_parts_are_invalid_with_their_reason_and_the_loop_goes_on(tmp_path):
    recording = write_squares(
        tmp_path / "rec", [GOOD, 41, GOOD, 43, GOOD, 45, GOOD], rate=200, without_sensor=[2]
    )
    picture = recording.path_of("grey41.png")
    picture.write_bytes(picture.read_bytes()[:45])
    rows = (tmp_path / "rec" / "samples.jsonl").read_text().splitlines()
    readings = np.zeros((2, 32), np.float32)
    readings[0, 5] = math.nan
    np.save(recording.path_of("nan.npy"), readings)
    np.save(recording.path_of("short.npy"), np.zeros((2, 31), np.float32))
    rows[3] = rows[3].replace("still.npy", "nan.npy")
    rows[4] = rows[4].replace("still.npy", "short.npy")
    rows[5] = rows[5].replace("still.npy", "gone.npy")
    (tmp_path / "rec" / "samples.jsonl").write_text("\n".join(rows) + "\n")
    write_bundle(tmp_path / "bundle")
    write_station(tmp_path)
    counters = run(tmp_path)
    found = inspections_in(tmp_path)
    assert [i.decision for i in found] == ["pass", *["invalid"] * 5, "pass"]
    reasons = [i.reason for i in found]
    assert "frame unreadable" in reasons[1]
    assert "no sensor window" in reasons[2]
    assert "1 NaN or infinite of 64" in reasons[3]
    assert "[2, 31]" in reasons[4]
    assert "sensor window unreadable" in reasons[5]
    assert all(i.anomaly_score is None and i.label == "" for i in found[1:6])
    assert counters["invalid"] == 5
    for name in (
        *("frame_unreadable", "no_window", "window_unreadable"),
        *("not_finite_window", "short_window"),
    ):
        assert counters[f"invalid_{name}"] == 1


def test_missing_window_is_judged_by_the_image_only_threshold_and_marked(tmp_path):
    between = 140  # score 0.55: over the threshold of both, under that of the image alone
    write_squares(tmp_path / "rec", [between, between], rate=200, without_sensor=[1])
    write_bundle(tmp_path / "bundle", spec_of(image_only=True))
    write_station(tmp_path)
    counters = run(tmp_path)
    both, alone = inspections_in(tmp_path)
    assert (both.decision, both.modalities, both.reason) == ("fail", ("image", "sensor"), "")
    assert (alone.decision, alone.modalities, alone.threshold) == ("pass", ("image",), 0.6)
    assert alone.reason == "judged by image alone: no sensor window"
    assert counters["image_only"] == 1


def test_model_without_a_sensor_inspects_a_recording_with_one(tmp_path):
    write_squares(tmp_path / "rec", [GOOD, BAD], rate=200)
    write_bundle(tmp_path / "bundle", spec_of(sensor=False))
    write_station(tmp_path)
    run(tmp_path)
    found = inspections_in(tmp_path)
    assert [i.decision for i in found] == ["pass", "fail"]
    assert {i.modalities for i in found} == {("image",)}


def test_score_that_is_not_finite_is_invalid_and_its_message_can_be_read(tmp_path):
    write_squares(tmp_path / "rec", [0, GOOD], rate=200)
    bundle = write_bundle(tmp_path / "bundle", spec_of(sensor=False))
    path = bundle.folder / INT8_FILE
    # 0 / 0 for the black part, infinity for the other: as a broken scale would give.
    full, zero = np.float32(255).tobytes(), np.float32(0).tobytes()
    assert path.read_bytes().count(full) == 1
    path.write_bytes(path.read_bytes().replace(full, zero))
    manifest = bundle.manifest
    changed = type(manifest)(
        manifest.spec, entries_of(bundle.folder), (), (), (), manifest.provenance
    )
    write_manifest(bundle.folder, changed)
    write_station(tmp_path)
    run(tmp_path)
    black, other = inspections_in(tmp_path)
    assert (black.decision, black.anomaly_score, black.class_scores) == ("invalid", None, {})
    assert black.reason == "the score is not finite"
    assert other.decision == "fail"


def test_grey_and_not_square_frames_of_any_size_are_taken(tmp_path):
    recording = write_squares(tmp_path / "rec", [GOOD, GOOD], rate=200)
    Image.new("L", (41, 23), GOOD).save(recording.path_of(f"grey{GOOD}.png"))
    write_bundle(tmp_path / "bundle")
    write_station(tmp_path)
    assert run(tmp_path)["pass"] == 2


def test_frames_of_another_size_than_the_bundles_are_judged_counted_and_told_of_once(
    tmp_path, caplog
):
    recording = write_squares(tmp_path / "rec", [GOOD, BAD, GOOD], rate=200)
    Image.new("RGB", (40, 24), (BAD, BAD, BAD)).save(recording.path_of(f"grey{BAD}.png"))
    write_bundle(tmp_path / "bundle", msgspec.structs.replace(spec_of(), frame=ImageInput(24, 40)))
    write_station(tmp_path)
    with caplog.at_level("WARNING", logger="inspector"):
        counters = run(tmp_path)
    assert [i.decision for i in inspections_in(tmp_path)] == ["pass", "fail", "pass"]
    assert counters["frames_resized"] == 2
    told = [record.getMessage() for record in caplog.records if "resized" in record.getMessage()]
    assert len(told) == 1
    assert "source main: frames of 16x16, and the bundle is made for 40x24" in told[0]


def test_lateness_is_counted_when_inference_cannot_keep_the_pace(tmp_path):
    write_squares(tmp_path / "rec", [GOOD] * 50, rate=100_000)
    write_bundle(tmp_path / "bundle")
    write_station(tmp_path)
    counters = run(tmp_path)
    assert counters["inspected"] == 50, "played late, not skipped"
    assert counters["late_frames"] >= 40
    assert counters["late_max_ms"] >= 1


def test_second_inspector_of_the_station_is_refused(tmp_path):
    write_squares(tmp_path / "rec", [GOOD] * 3)
    write_bundle(tmp_path / "bundle")
    station = station_from_toml(write_station(tmp_path, source="repeat = true"))
    first = edge("agent", "inspector", "--station", tmp_path / "station.toml", stderr=-1)
    try:
        while b"ready" not in first.stderr.readline():
            assert first.poll() is None
        with pytest.raises(MachineError, match="no other inspector"):
            run_inspector(station, Event())
    finally:
        first.terminate()
    said = first.communicate(timeout=10)[1].decode()
    assert first.returncode == 0
    assert "stopped: " in said


def test_bundle_with_a_changed_byte_stops_the_agent_with_status_2(tmp_path):
    write_squares(tmp_path / "rec", [GOOD])
    write_bundle(tmp_path / "bundle")
    path = tmp_path / "bundle" / INT8_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    write_station(tmp_path)
    with pytest.raises(InputError, match="the file that the manifest names"):
        run(tmp_path)
    agent = edge("agent", "inspector", "--station", tmp_path / "station.toml", stderr=-1)
    said = agent.communicate(timeout=20)[1].decode()
    assert agent.returncode == 2
    assert "Traceback" not in said
    assert Bundle.open(tmp_path / "bundle")
