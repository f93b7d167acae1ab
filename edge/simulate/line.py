"""A simulated line: parts in order, each seen and heard, written as a recording.

Four labels. `ok`; `surface` shows only in the image (scratch, pit, stain); `bearing` only in the
sensor window; `mismatch` only in the two together: the image and the window are each drawn exactly
as for good parts, but of different materials. So neither modality alone can see a mismatch.

Everything follows from the seed: no clock, no file of the machine but the textures.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
from PIL import Image

from edge.artefact import digest_of_file
from edge.errors import InputError
from edge.recording.format import (
    FILES_FOLDER,
    Recording,
    RecordingHeader,
    SampleRow,
    write_recording,
)
from edge.recording.splits import Grouped, splits_of
from edge.recording.track import Track
from edge.simulate.part import BEARING, MISMATCH, OK, SURFACE, Part
from edge.simulate.picture import picture_of
from edge.simulate.textures import FINISHES, HARD, SOFT, textures
from edge.simulate.waveform import CHANNELS, window_of

CLASSES = (OK, SURFACE, BEARING, MISMATCH)
DEFECT_MIX = {SURFACE: 0.375, BEARING: 0.300, MISMATCH: 0.325}
ABSENT_SHARE = 0.04  # of the parts whose defect, if any, is in the image
STUCK_SHARE = 0.03  # of all recorded windows
SHIFT_START = datetime(2026, 3, 2, 6, 0, tzinfo=timezone.utc)
JPEG_QUALITY = 92
MIN_PARTS, MIN_SIDE, MAX_SIDE = 12, 32, 4096


@dataclass(frozen=True)
class LineOrder:
    """What to simulate. `size` is (width, height) in pixels; `defects` a share of the parts."""

    parts: int = 300
    seed: int = 0
    size: tuple[int, int] = (320, 240)
    defects: float = 0.4
    parts_per_second: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated. Raises InputError."""
        _require(self.parts >= MIN_PARTS, "--parts", f"at least {MIN_PARTS} parts", self.parts)
        _require(self.seed >= 0, "--seed", "a seed of 0 or more", self.seed)
        _require(0.0 <= self.defects <= 0.75, "--defects", "a share of 0 to 0.75", self.defects)
        for side in self.size:
            _require(
                MIN_SIDE <= side <= MAX_SIDE, "--size", f"{MIN_SIDE} to {MAX_SIDE} pixels", side
            )


def simulate(order: LineOrder, out: Path, track: Track = iter) -> Recording:
    """Fill the empty folder `out` (see `artefact.new_folder`) and return the recording."""
    loaded = textures()
    parts = parts_of(order)
    splits = splits_of(
        [Grouped(part.label, part.name, part.name) for part in parts], OK, seed=order.seed
    )
    for folder in ("images", "sensors", "masks"):
        (out / FILES_FOLDER / folder).mkdir(parents=True)
    rows = [
        _recorded(part, splits[part.index], loaded[part.finish.name], order, out / FILES_FOLDER)
        for part in track(parts)
    ]
    present = {part.label for part in parts}
    header = RecordingHeader(
        name=f"simulated-line-{order.seed}",
        channels=CHANNELS,
        classes=tuple(label for label in CLASSES if label in present),
        parts_per_second=order.parts_per_second,
        source=f"edge simulate --parts {order.parts} --seed {order.seed} "
        f"--size {order.size[0]}x{order.size[1]} --defects {order.defects:g}",
    )
    write_recording(out, header, rows)
    return Recording(out, header, tuple(rows))


def parts_of(order: LineOrder) -> list[Part]:
    """Return the parts in the order in which they pass, labels in exact numbers."""
    rng = np.random.default_rng([order.seed, 0])  # the parts themselves use [seed, 1 + index]
    labels = _labels(order)
    rng.shuffle(labels)
    shares = [finish.share for finish in FINISHES]
    parts = []
    for index, label in enumerate(labels):
        finish = FINISHES[int(rng.choice(len(FINISHES), p=shares))]
        sound = finish.sound
        if label == MISMATCH:
            sound = HARD if sound == SOFT else SOFT
        parts.append(
            Part(
                index=index,
                label=label,
                finish=finish,
                sound=sound,
                shift=index / max(1, order.parts - 1),
                window=_window_state(label, rng),
            )
        )
    return parts


def _labels(order: LineOrder) -> list[str]:
    counts = {
        label: max(1, round(order.parts * order.defects * share)) if order.defects else 0
        for label, share in DEFECT_MIX.items()
    }
    defects = [label for label, count in counts.items() for _ in range(count)]
    return [OK] * (order.parts - len(defects)) + defects


def _window_state(label: str, rng: np.random.Generator) -> str:
    """Dropouts spare the labels that only the window can show, or these could not be known."""
    chance = rng.uniform()
    if chance < ABSENT_SHARE and label in (OK, SURFACE):
        return "absent"
    return "stuck" if chance > 1.0 - STUCK_SHARE else "whole"


def _recorded(
    part: Part, split: str, texture: Image.Image, order: LineOrder, files: Path
) -> SampleRow:
    """Draw and hear one part, write its files, and return its row."""
    rng = np.random.default_rng([order.seed, 1 + part.index])
    captured_at = _captured_at(part, order, rng)
    pixels, mask_pixels = picture_of(part, texture, order.size, rng)
    image = f"images/{part.name}.jpg"
    Image.fromarray(pixels).save(files / image, quality=JPEG_QUALITY, subsampling=0)
    mask = sensor = None
    if mask_pixels is not None:
        mask = f"masks/{part.name}.png"
        Image.fromarray(np.where(mask_pixels, 255, 0).astype(np.uint8)).save(files / mask)
    if part.window != "absent":
        sensor = f"sensors/{part.name}.npy"
        np.save(files / sensor, window_of(part, rng))
    return SampleRow(
        sample_id=part.name,
        image=image,
        image_digest=digest_of_file(files / image),
        label=part.label,
        split=split,
        part_id=part.name,
        sensor=sensor,
        sensor_digest=digest_of_file(files / sensor) if sensor else None,
        mask=mask,
        captured_at=captured_at,
    )


def _captured_at(part: Part, order: LineOrder, rng: np.random.Generator) -> str:
    """Evenly paced, with a little jitter of the belt."""
    seconds = (part.index + rng.uniform(0.0, 0.1)) / order.parts_per_second
    moment = SHIFT_START + timedelta(milliseconds=round(seconds * 1000))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _require(holds: bool, where: str, expected: str, found: object) -> None:
    if not holds:
        raise InputError(where=where, expected=expected, found=f"{found}", do="Correct the option.")
