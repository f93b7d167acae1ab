"""A sample becomes the model's input tensors: resize and copy, and nothing else that computes.

Scaling, colour and sensor standardisation live inside the model, so that training and device
cannot differ (see DESIGN: the keystone). What is not fit to be judged is refused here, at the
door, by `UnfitSample`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge.errors import UnfitSample
from edge.model_spec import ImageInput, ModelSpec, SensorInput
from edge.sample import Sample, Window

MODALITIES = ("image", "sensor")


def model_inputs(
    sample: Sample, spec: ModelSpec, *, withhold: str | None = None
) -> dict[str, NDArray[Any]]:
    """Return the input tensors of one sample, batch of 1, by the names of `spec.inputs()`.

    `withhold` ("image" or "sensor") hides one modality, as a missing sensor does: its tensor is
    zero and its `present` flag is 0. Raises UnfitSample.
    """
    assert withhold in (None, *MODALITIES)
    image = image_tensor(sample.frame.pixels, spec.takes)
    if spec.sensor is None:
        return {"image": image}
    window = None if withhold == "sensor" else sample.window
    if withhold == "image":
        image = np.zeros_like(image)
    present = [[float(withhold != "image"), float(window is not None)]]
    return {
        "image": image,
        "sensor": sensor_tensor(window, spec.sensor, sample.sample_id),
        "present": np.asarray(present, dtype=np.float32),
    }


def image_tensor(pixels: NDArray[np.uint8], size: ImageInput) -> NDArray[np.uint8]:
    """Resize [H, W, 3] RGB pixels to uint8 [1, height, width, 3], where they are of another size.

    By Pillow's triangle filter, as wide as the scale: the columns, then the rows, in whole grey
    levels after each. `export.resize` writes the same into a graph that takes whole frames.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UnfitSample(
            where="frame",
            expected="uint8 pixels [H, W, 3]",
            found=f"{pixels.dtype} {list(pixels.shape)}",
            do="Check the camera's pixel format.",
        )
    if pixels.shape[:2] != (size.height, size.width):
        # Pillow's resampling is fixed-point integer arithmetic: the same bytes on every machine.
        # Pass by pass: which comes first in one call depends on the version (13 changed it). And no
        # `reducing_gap`, which is quicker and another filter: a graph would have to follow it.
        picture = Image.fromarray(pixels)
        for wanted in ((size.width, picture.height), (size.width, size.height)):
            if picture.size != wanted:
                picture = picture.resize(wanted, Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
    return np.ascontiguousarray(pixels)[None]


def is_resized(pixels: NDArray[np.uint8], spec: ModelSpec) -> bool:
    """Tell whether pixels [H, W, 3] are of another size than the frames that a bundle is made for.

    A model that takes images of the student's own size is made for no camera's frames.
    """
    return spec.frame is not None and pixels.shape[:2] != (spec.frame.height, spec.frame.width)


def resized_text(count: int, frames: int, spec: ModelSpec) -> str:
    """Say how many frames were of another size; an empty text where none was."""
    if spec.frame is None or not count:
        return ""
    size = f"{spec.frame.width}x{spec.frame.height}"
    return f"{count} of {frames} frames are not of {size}: each was resized on the CPU first"


def sensor_tensor(
    window: Window | None, sensor: SensorInput, sample_id: str
) -> NDArray[np.float32]:
    """Return float32 [1, C, T] in physical units; zeros where the window is absent."""
    shape = (len(sensor.channels), sensor.samples)
    if window is None:
        return np.zeros((1, *shape), dtype=np.float32)
    if window.channels != sensor.channels:
        raise UnfitSample(
            where=f"sensor window of '{sample_id}'",
            expected="channels " + channels_text(sensor.channels),
            found=channels_text(window.channels),
            do="Use a recording (or sensors) with the channels that the model was trained on.",
        )
    if window.values.shape != shape:
        raise UnfitSample(
            where=f"sensor window of '{sample_id}'",
            expected=f"shape {list(shape)} [channels, readings]",
            found=str(list(window.values.shape)),
            do="Cut the window to the model's length, or train on windows of this length.",
        )
    if not np.isfinite(window.values).all():
        bad = np.count_nonzero(~np.isfinite(window.values))
        raise UnfitSample(
            where=f"sensor window of '{sample_id}'",
            expected="finite readings",
            found=f"{bad} NaN or infinite of {window.values.size}",
            do="Check the sensor and its cable; `edge recordings show` lists every such window.",
        )
    return np.ascontiguousarray(window.values, dtype=np.float32)[None]


def channels_text(channels: tuple[Any, ...]) -> str:
    """Write channels as a person would on the command line: `drive_end:g:12000`."""
    return ", ".join(f"{c.name}:{c.unit}:{c.rate_hz:g}" for c in channels) or "none"
