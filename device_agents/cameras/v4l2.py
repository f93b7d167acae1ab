"""A V4L2 camera as a GStreamer pipeline, after a look at its device file.

Raw formats and MJPEG are both taken: where a size or a rate is asked for, the camera itself must
have it, for a picture scaled in secret would be another picture.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from device_agents.cameras.gstreamer import ending, fraction_of
from device_agents.station import Source
from edge.errors import MachineError

# On a Jetson `decodebin` would take NVIDIA's decoder, whose frames lie in memory of its own that
# nothing after it reads. A pipeline of one's own (`gstreamer`) may use it, with nvvidconv.
ENVIRONMENT = {"GST_PLUGIN_FEATURE_RANK": "nvjpegdec:NONE,nvv4l2decoder:NONE"}


def v4l2_words(where: str, source: Source) -> list[str]:
    """Return the pipeline for `source.v4l2`. Raises MachineError where there is no such camera."""
    assert source.v4l2 is not None
    refuse_other_devices(where, Path(source.v4l2))
    mode = ""
    if source.width is not None:
        mode += f",width={source.width}"
    if source.height is not None:
        mode += f",height={source.height}"
    if source.frames_per_second is not None:
        mode += f",framerate={fraction_of(source.frames_per_second)}"
    words = ["v4l2src", f"device={source.v4l2}"]
    if mode:
        words += ["!", f"video/x-raw{mode};image/jpeg{mode}"]
    return [*words, "!", "decodebin", *ending(None, None, None)]


def refuse_other_devices(where: str, path: Path) -> None:
    """Raise MachineError, with the next step, where `path` is no camera that we may open."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _unfit(where, path, error.strerror or str(error), _cameras_here()) from None
    if not stat.S_ISCHR(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no character device"
        raise _unfit(where, path, kind, _cameras_here())
    if not os.access(path, os.R_OK | os.W_OK):
        group = _group_of(path)
        raise _unfit(
            where,
            path,
            f"no right to read and write it (it is of the group '{group}')",
            f"Add the user to the group: usermod -aG {group} USER (in the unit: "
            f"SupplementaryGroups={group}), then start again.",
        )


def _group_of(path: Path) -> str:
    try:
        return path.group()
    except (KeyError, OSError):  # a number without a name, as in a container
        return "video"


def _cameras_here() -> str:
    found = ", ".join(str(path) for path in sorted(Path("/dev").glob("video*")))
    here = f"This machine has {found}." if found else "This machine has no /dev/video*."
    return f"Plug the camera in, or correct the path. {here}"


def _unfit(where: str, path: Path, found: str, do: str) -> MachineError:
    return MachineError(where=f"{where} {path}", expected="a V4L2 camera", found=found, do=do)
