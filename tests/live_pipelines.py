"""What tests of live sources share: whether GStreamer is here, and pipelines small enough."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest


def _elements_here() -> bool:
    if shutil.which("gst-launch-1.0") is None:
        return False
    # The names of plugins from -base and -good that the product itself uses.
    launched = subprocess.run(
        ["gst-launch-1.0", "-q", "videotestsrc", "num-buffers=1", "!", "videoconvert", "!",
         "matroskamux", "!", "fakesink"],
        capture_output=True,
    )  # fmt: skip
    return launched.returncode == 0


needs_gstreamer = pytest.mark.skipif(
    not _elements_here(),
    reason="GStreamer is NOT installed: live cameras and sensors are not proven on this machine "
    "(apt-get install gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good)",
)

VIDEO = "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=50/1"
AUDIO = "audiotestsrc is-live=true freq=100 samplesperbuffer=16 ! audio/x-raw,rate=1600"


def wait_until(condition, within_s=5.0):
    """Wait for `condition()`; the last answer comes back."""
    deadline_s = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return condition()


def is_alive(process_id):
    """Tell whether a process runs: there, and no zombie."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
