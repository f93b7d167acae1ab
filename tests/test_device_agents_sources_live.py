"""Cameras and sensors through real GStreamer pipelines: what comes, and all that may fail."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Timer

import msgspec
import numpy as np
import pytest
from live_pipelines import AUDIO, VIDEO, is_alive, needs_gstreamer, wait_until
from small_station import READINGS, SIZE, spec_of, write_bundle, write_station

from device_agents.cameras.gstreamer import GstFrames, ending, fraction_of
from device_agents.cameras.v4l2 import v4l2_words
from device_agents.health import health_of
from device_agents.inspector.loop import run_inspector
from device_agents.monitor.metrics import Watched, families_of
from device_agents.outbox.reader import OutboxReader
from device_agents.pairing.pair import Paired, pair
from device_agents.sources.live import LiveSource
from device_agents.station import Source, station_from_toml
from device_agents.streams.pipeline import GstPipeline, Launch, words_of
from edge.errors import InputError, MachineError
from edge.model_spec import SensorInput
from edge.sample import Channel

MS = 1_000_000
IMAGE_ONLY = spec_of(sensor=False)


def live(spec=IMAGE_ONLY, **source):
    source = {"gstreamer": VIDEO, "frames_per_second": 50.0, **source}
    return LiveSource("main", Source(**source), spec)


def take(count, from_source):
    """The first `count` parts of a source, which is then closed."""
    stop, parts = Event(), []
    for part in from_source.parts(stop):
        parts.append(part)
        if len(parts) == count:
            stop.set()
    return parts


@contextmanager
def frames(text, **given):
    given = {"room": 4, "free_running": True, "stalled_after_s": 5.0, **given}
    launch = Launch("source.gstreamer", words_of(text, "t") + ending(None, None, None))
    with GstFrames(launch, **given) as camera:
        yield camera


def children():
    """The processes that this one has started and that still run."""
    task = Path(f"/proc/{os.getpid()}/task")
    numbers = [n for t in task.iterdir() for n in (t / "children").read_text().split()]
    return {int(number) for number in numbers if is_alive(int(number))}


@needs_gstreamer
def test_frames_come_in_order_with_their_geometry_and_even_times():
    before = children()
    parts = take(25, live(triggered=False))
    shots = [shot for shot, _ in parts]
    assert {shot.frame.pixels.shape for shot in shots} == {(48, 64, 3)}
    assert {(shot.source, shot.triggered, shot.part_id) for shot in shots} == {("main", False, "")}
    assert len({shot.sample_id for shot in shots}) == 25
    times = np.diff([shot.frame.captured_at_ns for shot in shots])
    assert (times > 0).all()
    # Stamps are the pipeline's own: 20 ms apart but where a better estimate came meanwhile.
    assert np.median(times) == pytest.approx(20 * MS, abs=0.2 * MS)
    assert abs(shots[-1].frame.captured_at_ns - time.time_ns()) < 2_000 * MS
    assert children() == before, "the pipeline ended with the source"


@needs_gstreamer
@pytest.mark.parametrize("width", [64, 65, 66, 67])
def test_padded_rows_and_colours_come_out_right(width):
    text = (
        "videotestsrc is-live=true pattern=solid-color foreground-color=0xFF102030 ! "
        f"video/x-raw,format=RGB,width={width},height=16,framerate=50/1"
    )
    with frames(text) as camera:
        pixels = camera.next(Event()).pixels
    assert pixels.shape == (16, width, 3)
    assert (pixels == (0x10, 0x20, 0x30)).all()


@needs_gstreamer
def test_size_and_rate_are_those_of_the_station_file():
    shots = [shot for shot, _ in take(15, live(width=32, height=24, frames_per_second=25.0))]
    assert {shot.frame.pixels.shape for shot in shots} == {(24, 32, 3)}
    apart_ns = np.diff([shot.frame.captured_at_ns for shot in shots])
    assert np.median(apart_ns) == pytest.approx(40 * MS, abs=0.5 * MS), "every second of 50"


@needs_gstreamer
def test_delay_is_taken_off_the_time_of_a_frame():
    [*_, (shot, _)] = take(10, live(delay_ms=500.0))
    assert time.time_ns() - shot.frame.captured_at_ns > 500 * MS


@needs_gstreamer
def test_slow_reader_gets_the_newest_frames_and_is_told_how_many_it_lost():
    with frames(VIDEO) as camera:
        stop = Event()
        camera.next(stop)
        time.sleep(1.0)  # fifty frames fall due
        late = [camera.next(stop) for _ in range(6)]
        now_ns = time.monotonic_ns()
    lost = sum(frame.lost_before for frame in late)
    assert 30 < lost < 60
    assert late[0].lost_before > 30
    assert now_ns - late[0].captured_ns < 600 * MS, "no stale frame waited in the pipe"
    got = [frame.captured_ns for frame in late]
    assert got == sorted(got)


@needs_gstreamer
def test_hole_in_a_free_running_stream_is_counted_and_one_between_triggers_is_not():
    for free_running in (True, False):
        text = f"{VIDEO} ! identity drop-probability=0.5"
        with frames(text, free_running=free_running) as camera:
            stop = Event()
            got = [camera.next(stop) for _ in range(15)]
        lost = sum(frame.lost_before for frame in got)
        missing = round((got[-1].captured_ns - got[0].captured_ns) / (20 * MS)) - 14
        assert missing > 0
        assert abs(lost - missing) <= 1 if free_running else lost == 0


@needs_gstreamer
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("videotestsrc ! nosuchelement", 'no element "nosuchelement"'),
        ("videotestsrc ! ! fakesink", "syntax error"),
        ("videotestsrc pattern=nosuch", "pattern"),
        ("filesrc location=/no/such/file ! decodebin", "No such file"),
        ("audiotestsrc is-live=true", "not.*link|failed"),
        ("v4l2src device=/dev/video99", "/dev/video99"),
        ("videotestsrc num-buffers=3", "came to its end"),
    ],
)
def test_pipeline_that_cannot_run_or_ends_is_named_with_what_gstreamer_said(text, words):
    before = children()
    with pytest.raises(MachineError, match=words) as failed:
        take(5, live(gstreamer=text, frames_per_second=None))
    assert failed.value.where == "source.gstreamer"
    assert "gst-" in failed.value.do
    assert children() == before


@needs_gstreamer
def test_camera_that_falls_silent_is_a_failure_and_its_process_ends():
    every_half_minute = "videotestsrc ! video/x-raw,width=16,height=16,framerate=1/30"
    before = children()
    stop = Event()
    with frames(f"{every_half_minute} ! identity sync=true", stalled_after_s=0.5) as camera:
        assert camera.next(stop) is not None
        with pytest.raises(MachineError, match=r"none for 0\.\d s"):
            camera.next(stop)
    assert children() == before


@needs_gstreamer
def test_pipeline_killed_from_outside_is_a_failure():
    with frames(VIDEO) as camera:
        stop = Event()
        camera.next(stop)
        os.kill(camera.process_id, signal.SIGKILL)
        with pytest.raises(MachineError, match="crashed"):
            [camera.next(stop) for _ in range(100)]


@needs_gstreamer
def test_stop_ends_a_source_that_waits_for_frames():
    stop = Event()
    source = live(gstreamer="videotestsrc is-live=true ! video/x-raw,framerate=1/10 ! identity")
    stop.set()
    assert list(source.parts(stop)) == []


@needs_gstreamer
def test_pipeline_that_talks_without_end_does_not_stop_its_frames():
    with frames(f"{VIDEO} ! identity silent=false dump=true") as camera:
        stop = Event()
        for _ in range(100):  # each frame is printed in full: 30 kB of text
            assert camera.next(stop) is not None


@needs_gstreamer
def test_source_that_failed_can_be_started_again():
    source = live()
    for _ in range(2):
        assert len(take(3, source)) == 3


@needs_gstreamer
def test_killed_inspector_leaves_no_pipeline_behind():
    code = (
        "import time; from device_agents.streams.pipeline import *\n"
        "p = GstPipeline(Launch('t', words_of('videotestsrc is-live=true ! "
        "video/x-raw,framerate=1/60', 't')))\n"
        "print(p.process_id, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    assert wait_until(lambda: is_alive(child))
    time.sleep(0.3)  # let it get beyond its start: it gives a frame a minute, and stays silent
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not is_alive(child)), "an orphan holds the camera"


@needs_gstreamer
def test_process_is_reaped_and_its_pipes_are_closed():
    files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        pipeline = GstPipeline(Launch("t", words_of(VIDEO, "t")))
        pipeline.close()
        pipeline.close()
        pipeline.output.close()
        assert not Path(f"/proc/{pipeline.process_id}").exists(), "no zombie"
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_missing_gstreamer_names_the_packages(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MachineError, match=r"apt-get install gstreamer1\.0-tools"):
        take(1, live())


@pytest.mark.parametrize("text", ["", "   ", 'videotestsrc name="x', "a ! b\0c"])
def test_text_that_is_no_pipeline_is_refused(text):
    with pytest.raises(InputError, match=r"source\.gstreamer.*without its sink"):
        take(1, live(gstreamer=text))


@needs_gstreamer
def test_text_never_reaches_a_shell(tmp_path):
    with pytest.raises(MachineError):
        take(1, live(gstreamer=f"videotestsrc ; touch {tmp_path}/shell $(touch {tmp_path}/sub)"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rate", "text"), [(29.97, "30000/1001"), (25.0, "25000/1000"), (12.5, "12500/1000")]
)
def test_rates_are_written_as_cameras_write_them(rate, text):
    assert fraction_of(rate) == text


# Sensors beside the camera.


@needs_gstreamer
def test_each_frame_has_the_readings_around_its_moment():
    spec = spec_of()
    source = live(spec, sensor_gstreamer=AUDIO, sensor_scale=(2.0, 5.0))
    parts = take(30, source)
    assert {reading.gaps_before for _, reading in parts} == {0}
    for shot, reading in parts:
        window = reading.window
        assert window is not None, reading.fault
        assert window.values.shape == (2, READINGS)
        apart_ms = abs(window.captured_at_ns - shot.frame.captured_at_ns) / MS
        assert apart_ms < 0.32, "half a reading at 1600 Hz"
        assert isinstance(pair(shot, reading, spec, source.tolerance_ms), Paired)
        # The sine of 0.8 of full scale, in units of each channel.
        assert window.values.max(axis=1) == pytest.approx([1.6, 4.0], rel=0.01)


@needs_gstreamer
def test_sine_keeps_its_frequency_and_its_phase_over_many_windows():
    """The phase says whether windows are cut where their times say: 1 ms off is 36 degrees."""
    spec = spec_of()
    parts = take(60, live(spec, sensor_gstreamer=AUDIO))[10:]
    times_s, phases = [], []
    for _, reading in parts:
        values = reading.window.values[0].astype(np.float64)
        spectrum = np.fft.rfft(values * np.hanning(READINGS), 4096)
        peak_hz = np.argmax(np.abs(spectrum)) * 1600 / 4096
        assert peak_hz == pytest.approx(100, abs=2)
        offsets_s = (np.arange(READINGS) - READINGS / 2) / 1600
        phases.append(np.angle(np.sum(values * np.exp(-2j * np.pi * 100 * offsets_s))))
        times_s.append(reading.window.captured_at_ns / 1e9)
    steps = np.diff(phases) - 2 * np.pi * 100 * np.diff(times_s)
    off_ms = ((steps + np.pi) % (2 * np.pi) - np.pi) / (2 * np.pi * 100) * 1e3
    assert np.median(np.abs(off_ms)) < 0.1


@needs_gstreamer
def test_other_rate_is_resampled_by_gstreamer_and_other_channels_are_never_mixed():
    spec = spec_of()
    fast = "audiotestsrc is-live=true freq=100 samplesperbuffer=441 ! audio/x-raw,rate=44100"
    [*_, (_, reading)] = take(10, live(spec, sensor_gstreamer=fast))
    assert reading.window.values.shape == (2, READINGS)
    mono = f"{AUDIO},channels=1"
    with pytest.raises(MachineError, match=r"source\.sensor_gstreamer"):
        take(3, live(spec, sensor_gstreamer=mono))


@needs_gstreamer
def test_dropouts_of_a_sensor_are_counted_and_the_count_reaches_the_plant(tmp_path):
    """From the pipeline to Health and to Prometheus: what is lost is counted, and sent."""
    source = f"""
[sources.main]
gstreamer = "{VIDEO}"
frames_per_second = 50.0
sensor_gstreamer = "{AUDIO} ! identity drop-probability=0.2"
"""
    write_bundle(tmp_path / "bundle")
    text = write_station(tmp_path).read_text()
    text = re.sub(r"\[source\]\n.*\n", "", text) + source
    (tmp_path / "station.toml").write_text(text)
    station = station_from_toml(tmp_path / "station.toml")
    stop = Event()
    Timer(3.0, stop.set).start()
    counters = run_inspector(station, stop)
    assert counters["sensor_gaps"] > 5
    assert counters["invalid_window_gap"] > 0
    reader = OutboxReader.open(tmp_path / "outbox.sqlite")
    health = health_of(station, reader, None, None, None)
    reader.close()
    assert health.counters["sensor_gaps"] == counters["sensor_gaps"]
    shown = Watched(station, health, read_at_s=0.0, reading_took_s=0.0)
    events = next(f for f in families_of(shown) if f.name == "orin_inspect_events")
    [gaps] = [s.value for s in events.samples if s.labels["kind"] == "sensor_gaps"]
    assert gaps == counters["sensor_gaps"]


@needs_gstreamer
def test_sensor_that_ends_fails_the_source_by_its_own_name():
    text = AUDIO.replace("is-live=true", "is-live=true num-buffers=30")
    with pytest.raises(MachineError, match=r"source\.sensor_gstreamer.*came to its end"):
        take(100, live(spec_of(), sensor_gstreamer=text))


@needs_gstreamer
def test_sensor_that_falls_silent_is_stale_first_and_then_a_failure():
    # Two seconds of readings in one block, then nothing until the next block is full.
    text = AUDIO.replace("samplesperbuffer=16", "samplesperbuffer=3200")
    source = live(spec_of(), sensor_gstreamer=text, stalled_after_s=0.6)
    parts, faults = source.parts(Event()), []
    with pytest.raises(MachineError, match=r"sensor_gstreamer.*none for 0\.\d s"):
        faults.extend(reading.fault for _, reading in parts)
    assert any("have not come" in fault for fault in faults)


@pytest.mark.parametrize(
    ("spec", "source", "words"),
    [
        (spec_of(), {}, r"drive_end:g:1600, load:N:1600, found no pipeline for sensors"),
        (IMAGE_ONLY, {"sensor_gstreamer": AUDIO}, "the model looks at images alone"),
        (
            spec_of(),
            {"sensor_gstreamer": AUDIO, "sensor_scale": (1.0,)},
            r"source\.sensor_scale: expected one figure for each of the model's 2 channels",
        ),
        (spec_of(), {"sensor_gstreamer": " "}, r"source\.sensor_gstreamer"),
        (IMAGE_ONLY, {"tolerance_ms": 10.0}, "below 10 ms, half the time between two parts"),
    ],
)
def test_source_that_does_not_fit_the_model_is_refused_before_it_starts(spec, source, words):
    with pytest.raises(InputError, match=words):
        live(spec, **source)


def test_channels_of_different_rates_cannot_come_from_one_sound_card():
    mixed = SensorInput((Channel("a", "g", 1600.0), Channel("b", "N", 800.0)), READINGS)
    spec = msgspec.structs.replace(spec_of(), sensor=mixed)
    with pytest.raises(InputError, match="a 1600 Hz, b 800 Hz"):
        live(spec, sensor_gstreamer=AUDIO)


# A V4L2 camera: no device is here, so its refusals and the pipeline that would be run.


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/dev/video987", "No such file"),
        ("/", "a folder"),
        (__file__, "no character device"),
    ],
)
def test_what_is_no_camera_is_refused_at_the_door(path, found):
    with pytest.raises(MachineError, match=rf"source\.v4l2 {path}.*{found}.*Plug the camera in"):
        take(1, LiveSource("main", Source(v4l2=path), IMAGE_ONLY))


def test_camera_without_rights_names_the_group(monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(MachineError, match=r"no right.*group '.+'.*usermod -aG"):
        take(1, LiveSource("main", Source(v4l2="/dev/null"), IMAGE_ONLY))


def test_camera_gives_the_asked_mode_in_raw_or_mjpeg_and_is_not_scaled():
    source = Source(v4l2="/dev/null", width=1280, height=960, frames_per_second=29.97)
    words = " ".join(v4l2_words("source.v4l2", source))
    mode = "width=1280,height=960,framerate=30000/1001"
    assert f"v4l2src device=/dev/null ! video/x-raw,{mode};image/jpeg,{mode} ! decodebin" in words
    assert "videoscale" not in words
    plain = " ".join(v4l2_words("source.v4l2", Source(v4l2="/dev/null")))
    assert plain.startswith("v4l2src device=/dev/null ! decodebin ! queue leaky=downstream")


@needs_gstreamer
def test_device_that_is_no_camera_fails_with_v4l2s_own_words():
    source = LiveSource("left", Source(v4l2="/dev/null", width=SIZE), IMAGE_ONLY)
    with pytest.raises(MachineError, match=r"sources\.left\.v4l2.*/dev/null"):
        take(1, source)


@needs_gstreamer
def test_motion_jpeg_is_decoded_as_a_camera_would_send_it(tmp_path):
    text = (
        "videotestsrc is-live=true pattern=white ! video/x-raw,width=64,height=48,framerate=50/1 "
        "! jpegenc ! image/jpeg,width=64 ! decodebin"
    )
    [(shot, _)] = take(1, live(gstreamer=text))
    assert shot.frame.pixels.shape == (48, 64, 3)
    assert shot.frame.pixels.min() > 230
