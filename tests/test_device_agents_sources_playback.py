"""A recording in the place of camera and sensors: its pace, and its faults."""

import time
from threading import Event

import numpy as np
import pytest
from small_station import BAD, CHANNELS, GOOD, spec_of, write_squares

from device_agents.parts import iso_of
from device_agents.sources.playback import Playback
from device_agents.station import Source
from edge.errors import InputError
from edge.sample import Channel


def parts_of(folder, *, paced=False, **source):
    playback = Playback(Source(recording=str(folder), **source), spec_of(), paced=paced)
    return list(playback.parts(Event()))


def test_every_sample_comes_in_order_with_its_own_window(tmp_path):
    write_squares(tmp_path / "rec", [GOOD, BAD] * 20, without_sensor=[3], rate=1_000)
    parts = parts_of(tmp_path / "rec")
    assert [shot.sample_id for shot, _ in parts] == [f"p{n:04d}" for n in range(40)]
    for number, (shot, reading) in enumerate(parts):
        assert shot.frame.pixels[0, 0, 0] == (GOOD, BAD)[number % 2]
        assert (reading.window is None) == (number == 3)
        if reading.window is not None:
            assert reading.window.captured_at_ns == shot.frame.captured_at_ns


def test_frames_due_while_the_loop_is_busy_are_played_late_and_none_is_skipped(tmp_path):
    write_squares(tmp_path / "rec", [GOOD] * 10, rate=100)
    playback = Playback(Source(recording=str(tmp_path / "rec")), spec_of(), paced=True)
    late = []
    for number, (shot, _) in enumerate(playback.parts(Event())):
        assert shot.sample_id == f"p{number:04d}"
        late.append(shot.late_ms)
        if number == 2:
            time.sleep(0.05)  # five parts fall due meanwhile
    assert len(late) == 10
    assert late[3] >= 39  # due 10 ms after part 2, played at the end of the 50 ms
    assert late[4] >= 29


def test_station_file_overrides_the_pace(tmp_path):
    write_squares(tmp_path / "rec", [GOOD] * 3, rate=10)
    playback = Playback(
        Source(recording=str(tmp_path / "rec"), parts_per_second=500.0), spec_of(), paced=True
    )
    assert (playback.parts_per_second, playback.period_ms) == (500.0, 2.0)
    assert playback.tolerance_ms == 0.5


def test_repeated_playback_goes_on_with_times_that_grow(tmp_path):
    write_squares(tmp_path / "rec", [GOOD] * 3, rate=1_000)
    playback = Playback(
        Source(recording=str(tmp_path / "rec"), repeat=True), spec_of(), paced=False
    )
    stop, moments, names = Event(), [], []
    for shot, reading in playback.parts(stop):
        names.append(shot.sample_id)
        moments.append(shot.frame.captured_at_ns)
        assert reading.window.captured_at_ns == moments[-1]
        if len(names) == 7:
            stop.set()
    assert names == ["p0000", "p0001", "p0002"] * 2 + ["p0000"]
    assert moments == sorted(set(moments))


def test_truncated_picture_and_broken_sensor_file_are_faults_not_ends(tmp_path):
    recording = write_squares(tmp_path / "rec", [GOOD, BAD, GOOD])
    picture = recording.path_of(f"grey{BAD}.png")
    picture.write_bytes(picture.read_bytes()[:45])
    recording.path_of("still.npy").write_bytes(b"\x93NUMPY not quite")
    parts = parts_of(tmp_path / "rec")
    assert parts[1][0].frame is None
    assert parts[1][0].fault.startswith("frame unreadable")
    assert parts[2][0].frame is not None
    assert parts[2][1].fault.startswith("sensor window unreadable")


def test_recording_with_other_channels_is_refused_before_the_first_part(tmp_path):
    other = (CHANNELS[0], Channel("load", "kN", 1600.0))
    write_squares(tmp_path / "rec", [GOOD], channels=other)
    with pytest.raises(InputError, match=r"load:N:1600.*load:kN:1600"):
        parts_of(tmp_path / "rec")


def test_recording_without_sensors_is_refused_by_a_model_that_takes_one(tmp_path):
    write_squares(tmp_path / "rec", [GOOD], channels=(), without_sensor=[0])
    with pytest.raises(InputError, match=r"drive_end:g:1600, load:N:1600, found none\."):
        parts_of(tmp_path / "rec")
    image_model = spec_of(sensor=False)
    assert len(Playback(Source(recording=str(tmp_path / "rec")), image_model, paced=False)) == 1
    write_squares(tmp_path / "dropouts", [GOOD, GOOD], without_sensor=[0, 1])
    assert [reading.window for _, reading in parts_of(tmp_path / "dropouts")] == [None, None]


def test_missing_files_are_called_missing(tmp_path):
    recording = write_squares(tmp_path / "rec", [GOOD, BAD])
    recording.path_of(f"grey{BAD}.png").unlink()
    recording.path_of("still.npy").unlink()
    (_, window), (shot, _) = parts_of(tmp_path / "rec")
    assert shot.fault == f"frame unreadable: the file grey{BAD}.png is missing"
    assert window.fault == "sensor window unreadable: the file still.npy is missing"


def test_recording_without_samples_or_without_the_split_is_refused(tmp_path):
    write_squares(tmp_path / "rec", [GOOD])
    with pytest.raises(InputError, match="only test"):
        parts_of(tmp_path / "rec", split="validation")
    write_squares(tmp_path / "none", [])
    with pytest.raises(InputError, match="empty recording"):
        parts_of(tmp_path / "none")


def test_sensor_file_of_another_length_reaches_prepare_as_it_is(tmp_path):
    recording = write_squares(tmp_path / "rec", [GOOD])
    np.save(recording.path_of("still.npy"), np.zeros((2, 7), np.float32))
    [(_, reading)] = parts_of(tmp_path / "rec")
    assert reading.window.values.shape == (2, 7)


def test_times_are_written_as_utc_with_microseconds():
    assert iso_of(1_795_301_110_123_456_789) == "2026-11-21T22:45:10.123456Z"
