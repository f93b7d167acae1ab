"""A pipeline's process that misbehaves: garbage, half a frame, deafness. A stand-in plays it."""

import os
import sys
import time
from threading import Event

import pytest
from live_pipelines import is_alive
from small_station import spec_of
from test_device_agents_streams_matroska import CLUSTER, HEAD, simple_block

from device_agents.sources.live import LiveSource
from device_agents.station import Source
from device_agents.streams.pipeline import GstPipeline, Launch
from edge.errors import MachineError

FRAME = simple_block(b"rgb" * 6)  # 2x3 pixels, as HEAD says


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    """Put a program of the test's own in the place of gst-launch-1.0."""

    def install(body):
        path = tmp_path / "gst-launch-1.0"
        path.write_text(
            f"#!{sys.executable}\n"
            "import os, signal, sys, time\n"
            f"HEAD, CLUSTER, FRAME = {HEAD!r}, {CLUSTER!r}, {FRAME!r}\n"
            "out = int(next(word for word in sys.argv if word.startswith('fd='))[3:])\n"
            f"{body}\n"
        )
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return install


def seen_until_failure(**source):
    """Take parts one by one, so that those before the failure count."""
    source = {"stalled_after_s": 0.5, **source}
    live = LiveSource("main", Source(gstreamer="anything", **source), spec_of(sensor=False))
    parts, seen = live.parts(Event()), 0
    try:
        for _ in parts:
            seen += 1
    except MachineError as error:
        return seen, str(error)
    raise AssertionError("it ended without a failure")


@pytest.mark.parametrize(
    ("body", "seen", "words"),
    [
        ("os.write(out, b'garbage' * 1000)", 0, "no Matroska"),
        ("os.write(out, HEAD + CLUSTER + FRAME + b'\\0' * 5000)", 1, "element's name begins"),
        (
            "os.write(out, HEAD + CLUSTER + b'\\xa3\\x95\\x81\\0\\0\\x80' + b'x' * 17)",
            0,
            "17 bytes",
        ),
        ("os.write(out, HEAD + CLUSTER + b'\\xa3\\x08\\x70\\0\\0\\0\\0')", 0, "1879048192 bytes"),
        (
            "os.write(out, HEAD.replace(b'\\xb0\\x81\\x02', b'\\xb0\\x81\\x00') + CLUSTER)",
            0,
            "V_UNCOMPRESSED, 0x3",
        ),
        ("os.write(out, HEAD + CLUSTER + FRAME + FRAME[:-3])", 1, "came to its end"),
        ("os.write(out, HEAD + CLUSTER + FRAME); sys.exit('ERROR: unplugged')", 1, "unplugged"),
        ("os.write(out, HEAD + CLUSTER + FRAME); os.abort()", 1, "crashed (status -6)"),
        ("os.write(out, HEAD + CLUSTER + FRAME + FRAME[:-3]); time.sleep(60)", 1, "none for 0."),
        ("os.close(out); time.sleep(60)", 0, "closed its output"),
        ("pass", 0, "came to its end"),
        ("print('ERROR: ' + 'x' * 500_000); sys.exit(1)", 0, "ERROR: xxx"),
    ],
)
def test_broken_output_is_a_failure_after_the_frames_that_were_whole(launcher, body, seen, words):
    launcher(body)
    count, said = seen_until_failure()
    assert count == seen
    assert words in said


def test_pipeline_that_does_not_listen_to_signals_is_ended_by_force(launcher):
    launcher(
        "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, "
        "signal.SIG_IGN); os.write(out, HEAD + CLUSTER + FRAME); time.sleep(60)"
    )
    pipeline = GstPipeline(Launch("t", ["x"]))
    assert pipeline.output.read(4) == HEAD[:4]
    started_s = time.monotonic()
    pipeline.close()
    pipeline.output.close()
    assert time.monotonic() - started_s < 5
    assert not is_alive(pipeline.process_id)


def test_child_that_keeps_the_pipe_open_is_ended_with_its_parent(launcher):
    launcher("os.write(out, HEAD) if os.fork() else time.sleep(60)")
    pipeline = GstPipeline(Launch("t", ["x"]))
    pipeline.close()
    assert pipeline.output.read() in (b"", HEAD), "the end of the pipe is there"
    pipeline.output.close()


def test_chatter_on_both_outputs_never_blocks_the_frames(launcher):
    launcher(
        "[(print('y' * 100_000), print('z' * 100_000, file=sys.stderr)) for _ in range(20)]\n"
        "os.write(out, HEAD + CLUSTER + FRAME * 3)"
    )
    count, _ = seen_until_failure()
    assert count == 3


def test_camera_is_not_given_to_decoders_whose_memory_cannot_be_read(launcher):
    launcher("sys.exit('ERROR: ' + os.environ.get('GST_PLUGIN_FEATURE_RANK', 'none'))")
    for source, rank in (({"v4l2": "/dev/null"}, "nvjpegdec:NONE"), ({"gstreamer": "x"}, "none")):
        live = LiveSource("main", Source(**source), spec_of(sensor=False))
        with pytest.raises(MachineError, match=rank):
            list(live.parts(Event()))
