"""A GStreamer pipeline given as text, run by `gst-launch-1.0` as a process of its own.

What it gives comes through a pipe as raw Matroska. No binding is needed, and a driver that crashes
takes its own process down, not the inspector. The text is split as a shell would split it, and
never handed to one. The process ends with us: by `close`, by the pipe, and by the kernel's
parent-death signal (`setpriv`), so that after `kill -9` no orphan holds the camera.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from threading import Thread

from edge.errors import InputError, MachineError

LAUNCHER = "gst-launch-1.0"
PACKAGES = "gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
# Stamps in steps of 10 us (a block's own is 16 bits, hence the short clusters), nothing that would
# need a seek, and each block leaves at once.
_MUX = (
    *("matroskamux", "streamable=true", "timecodescale=10000"),
    *("min-cluster-duration=0", "max-cluster-duration=300000000"),
)
_PIPE_BYTES = 1 << 20  # what an unprivileged process may ask for: fewer turns per frame
_LEAVE_WITHIN_S = 1.0
_LINES_KEPT = 8
# Lines around an error that say nothing of it: places in GStreamer's source, changes of state.
_BESIDE = re.compile(r"^Additional debug|\.c\(\d+\): |^Setting pipeline|^Freeing|^Execution")

_NEXT_STEPS = (
    (
        "no element",
        f"Correct the name (gst-inspect-1.0 NAME), or install the plugin: {PACKAGES}; "
        "for alsasrc gstreamer1.0-alsa, for decoders gstreamer1.0-libav.",
    ),
    (
        "data stream error",
        "The source may not have that size or rate: see `v4l2-ctl -d DEVICE --list-formats-ext` "
        "(package v4l-utils), or leave width, height and frames_per_second out.",
    ),
    ("busy", "Stop the other program that has it: `fuser -v DEVICE` names it."),
)
_OTHERWISE = (
    "Check the plug, the device's rights and who else uses it; then try the pipeline by itself: "
    "gst-launch-1.0 PIPELINE ! fakesink"
)


def words_of(text: str, where: str) -> list[str]:
    """Split a pipeline's text into words. Raises InputError naming `where` it stands."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        words, reason = [], str(error)
    else:
        reason = "nothing in it"
    if not words or "\0" in text:
        raise InputError(
            where=where,
            expected="a GStreamer pipeline as gst-launch-1.0 takes it, without its sink",
            found=f"{text!r}: {reason}",
            do="Try it at the command line first: gst-launch-1.0 PIPELINE ! fakesink",
        )
    return words


@dataclass(frozen=True)
class Launch:
    """What is run. `where` names it in errors: the key in the station file."""

    where: str
    words: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class GstPipeline:
    """One run of a pipeline. `output` gives its Matroska stream."""

    def __init__(self, launch: Launch) -> None:
        self.where = launch.where
        read_end, write_end = os.pipe()
        with contextlib.suppress(OSError):  # a tight limit for pipes: then with the usual size
            fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        sink = ("!", *_MUX, "!", "fdsink", f"fd={write_end}", "sync=false")
        try:
            self._process = subprocess.Popen(
                # Without --no-fault a crash would spin for ever, waiting for a debugger.
                [*_launcher(launch.where), "-q", "--no-fault", *launch.words, *sink],
                env={**os.environ, **launch.environment},
                stdin=subprocess.DEVNULL,
                # Some elements (nvarguscamerasrc) talk on stdout: frames have a pipe of their own.
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                start_new_session=True,  # Ctrl-C is for us to pass on
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self.output = BufferedReader(os.fdopen(read_end, "rb", buffering=0), 1 << 16)
        self._error: list[str] = []  # the first error that it told, and what followed
        self._last_line = ""
        self._listener = Thread(target=self._listen, name=f"gst {launch.where}", daemon=True)
        self._listener.start()
        self._closed = False

    @property
    def process_id(self) -> int:
        """The process that runs the pipeline."""
        return self._process.pid

    def close(self) -> None:
        """End the process: as Ctrl-C does, so that drivers are left in order, then by force."""
        if self._closed:
            return  # its number may be another process's by now
        self._closed = True
        if self._process.poll() is None:
            self._signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LEAVE_WITHIN_S)
        self._signal(signal.SIGKILL)  # whatever it started may hold the pipe
        self._process.wait()
        self._listener.join(_LEAVE_WITHIN_S)

    def failure(self, expected: str, found: str) -> MachineError:
        """Return an error that quotes what the pipeline said, if it said anything."""
        said = self._complaint()
        return MachineError(
            where=self.where,
            expected=expected,
            found=f"{found}: {said}" if said else found,
            do=next((do for part, do in _NEXT_STEPS if part in said), _OTHERWISE),
        )

    def how_it_ended(self) -> str:
        """Say in words how the process ended, after waiting for it a little."""
        try:
            status = self._process.wait(_LEAVE_WITHIN_S)
        except subprocess.TimeoutExpired:
            return "the pipeline closed its output"
        self._listener.join(_LEAVE_WITHIN_S)  # what it said last
        if status == 0:
            return "the pipeline came to its end"
        return f"the pipeline {'crashed' if status < 0 else 'failed'} (status {status})"

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _listen(self) -> None:
        """Keep the first error and the last line, and the process from waiting on a full pipe."""
        assert self._process.stdout is not None
        begins = True
        with self._process.stdout as output:
            while piece := output.readline(4096):  # a longer line's rest is left out
                text = piece.decode("utf-8", "replace").strip()
                if begins and text:
                    self._last_line = text
                    if self._error or text.startswith(("ERROR", "WARNING: erroneous")):
                        self._error.append(text)
                    del self._error[_LINES_KEPT:]
                begins = piece.endswith(b"\n")

    def _complaint(self) -> str:
        """The first error that was said, with its first detail; else the last line."""
        details = [line for line in self._error[1:] if not _BESIDE.search(line)]
        said = "; ".join([*self._error[:1], *details[:1]]) or self._last_line
        return said[:400].rstrip(".")


def _launcher(where: str) -> list[str]:
    found = shutil.which(LAUNCHER)
    if found is None:
        raise MachineError(
            where=where,
            expected=f"{LAUNCHER}, which runs the pipeline",
            found="none on this machine",
            do=f"Install it: apt-get install {PACKAGES}",
        )
    setpriv = shutil.which("setpriv")  # of util-linux, which every Debian and Ubuntu has
    return [setpriv, "--pdeathsig", "KILL", "--", found] if setpriv else [found]
