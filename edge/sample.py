"""The nouns of one inspection: a frame, a sensor window, and the sample they form."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sensor channel: what it is called, its physical unit, and its sampling rate."""

    name: str
    unit: str
    rate_hz: float


@dataclass(frozen=True)
class Frame:
    """One picture of a part."""

    pixels: NDArray[np.uint8]  # [H, W, 3], RGB
    captured_at_ns: int  # Unix time in nanoseconds, UTC


@dataclass(frozen=True)
class Window:
    """One stretch of sensor readings around a frame."""

    values: NDArray[np.float32]  # [C, T], in the physical units of `channels`
    channels: tuple[Channel, ...]
    captured_at_ns: int  # Unix time of the window's middle in nanoseconds, UTC


@dataclass(frozen=True)
class Sample:
    """One part as the model meets it. `window` is None where no sensor reading was paired."""

    sample_id: str
    frame: Frame
    window: Window | None
    part_id: str = ""
