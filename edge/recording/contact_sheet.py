"""A recording on one sheet: a few samples of each class, picture above, readings below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from edge.errors import InputError
from edge.recording.format import UNLABELLED, Recording, SampleRow
from edge.sample import Sample

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"  # `--force` replaces a picture by a picture, nothing else
COLUMNS = 6
CELL_PX = 200
TRACE_PX = 44  # height of one channel's trace
GAP_PX = 8
TEXT_PX = 18
BACKGROUND, INK, FAINT, MARK = (250, 250, 248), (30, 30, 34), (222, 224, 228), (230, 30, 40)
TRACE_COLOURS = ((20, 90, 160), (190, 100, 20), (30, 130, 70), (130, 60, 150))


def contact_sheet(recording: Recording) -> Image.Image:
    """Draw up to six samples of each class. One channel has one scale over the whole sheet."""
    labels = list(recording.header.classes)
    labels += [UNLABELLED] if any(row.label == UNLABELLED for row in recording.rows) else []
    chosen = {label: _read(recording, label) for label in labels}
    samples = [sample for cells in chosen.values() for _, sample in cells]
    ranges = ranges_of(samples, len(recording.header.channels))
    cell_height = CELL_PX + TRACE_PX * len(recording.header.channels) + TEXT_PX
    row_height = TEXT_PX + GAP_PX + cell_height + GAP_PX
    size = (GAP_PX + COLUMNS * (CELL_PX + GAP_PX), TEXT_PX + 2 * GAP_PX + row_height * len(chosen))
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    write_text(draw, (GAP_PX, GAP_PX), _title(recording, ranges))
    for place, (label, cells) in enumerate(chosen.items()):
        top = TEXT_PX + 2 * GAP_PX + place * row_height
        count = sum(1 for row in recording.rows if row.label == label)
        write_text(draw, (GAP_PX, top), f"{label or 'unlabelled'}: {count:,} samples")
        for column, (row, sample) in enumerate(cells):
            left = GAP_PX + column * (CELL_PX + GAP_PX)
            picture = marked_picture(recording, row, sample)
            values = None if sample.window is None else sample.window.values
            corner = (left, top + TEXT_PX)
            draw_cell(sheet, corner, picture, values, ranges, sample.sample_id[-32:])
    return sheet


def _read(recording: Recording, label: str) -> list[tuple[SampleRow, Sample]]:
    """Read samples evenly spread over the class, passing over those that cannot be read."""
    rows = [row for row in recording.rows if row.label == label]
    step = max(1, len(rows) // COLUMNS)
    order = [*rows[::step], *(row for index, row in enumerate(rows) if index % step)]
    cells: list[tuple[SampleRow, Sample]] = []
    for row in order[: 4 * COLUMNS]:
        try:
            cells.append((row, recording.read_sample(row)))
        except InputError:
            continue
        if len(cells) == COLUMNS:
            break
    return sorted(cells, key=lambda cell: cell[0].captured_at or "")


def ranges_of(samples: Sequence[Sample], channels: int) -> list[tuple[float, float]]:
    """Lowest and highest finite reading of each channel over the sheet."""
    ranges = []
    for channel in range(channels):
        readings = [s.window.values[channel] for s in samples if s.window is not None]
        finite = [values[np.isfinite(values)] for values in readings]
        lows = [float(values.min()) for values in finite if values.size]
        highs = [float(values.max()) for values in finite if values.size]
        ranges.append((min(lows, default=0.0), max(highs, default=1.0)))
    return ranges


def _title(recording: Recording, ranges: Sequence[tuple[float, float]]) -> str:
    scales = [
        f"{channel.name} {low:.3g} to {high:.3g} {channel.unit}"
        for channel, (low, high) in zip(recording.header.channels, ranges, strict=True)
    ]
    return " | ".join([recording.header.name, f"{len(recording.rows):,} samples", *scales])


def marked_picture(recording: Recording, row: SampleRow, sample: Sample) -> Image.Image:
    """Return the frame, no larger than a cell, with a thin line around its labelled defect."""
    picture = Image.fromarray(sample.frame.pixels)
    picture.thumbnail((CELL_PX, CELL_PX))
    outline = _outline(recording, row, picture.size)
    if outline is not None:
        picture.paste(MARK, mask=outline)
    return picture


def draw_cell(  # noqa: PLR0913, PLR0917 (where, what of both modalities, and its name)
    sheet: Image.Image,
    corner: tuple[int, int],
    picture: Image.Image,
    values: NDArray[np.float32] | None,
    ranges: Sequence[tuple[float, float]],
    caption: str,
) -> None:
    """Draw one sample: its picture, below it one trace for each of `ranges`, below them a line.

    The picture fits a cell already; `values` [C, T] are its readings, None where it has none.
    """
    left, top = corner
    offset = (CELL_PX - picture.width) // 2, (CELL_PX - picture.height) // 2
    sheet.paste(picture, (left + offset[0], top + offset[1]))
    draw = ImageDraw.Draw(sheet)
    below = top + CELL_PX
    for channel, scale in enumerate(ranges):
        box = (left, below + 2, left + CELL_PX - 1, below + TRACE_PX - 2)
        draw.rectangle(box, outline=FAINT)
        if values is None:
            write_text(draw, (left + 6, below + 12), "no window")
        else:
            colour = TRACE_COLOURS[channel % len(TRACE_COLOURS)]
            draw_trace(draw, box, values[channel], scale, colour)
        below += TRACE_PX
    write_text(draw, (left, below), caption)


def _outline(recording: Recording, row: SampleRow, size: tuple[int, int]) -> Image.Image | None:
    try:
        mask = recording.read_mask(row)
    except InputError:
        return None
    return None if mask is None else outline_of(np.asarray(mask), size)


def outline_of(mask_HW: NDArray[np.generic], size: tuple[int, int]) -> Image.Image:
    """Return a thin line around the defect, so that the defect itself stays visible."""
    small = Image.fromarray(np.where(mask_HW, 255, 0).astype(np.uint8)).resize(size)
    near = small.point(lambda value: 255 if value else 0).filter(ImageFilter.MaxFilter(5))
    return ImageChops.subtract(near.filter(ImageFilter.MaxFilter(3)), near)


def draw_trace(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    values: NDArray[np.float32],
    scale: tuple[float, float],
    colour: tuple[int, int, int],
) -> None:
    """Draw the band between lowest and highest reading in each column of pixels."""
    left, top, right, bottom = box
    low, high = scale
    height = (bottom - top) / max(high - low, 1e-12)
    columns = np.array_split(values, right - left)
    for x, readings in enumerate(columns):
        finite = readings[np.isfinite(readings)]
        if finite.size:
            y_low = bottom - (float(finite.min()) - low) * height
            y_high = bottom - (float(finite.max()) - low) * height
            draw.line([(left + x, y_low), (left + x, min(y_high, y_low - 1.0))], fill=colour)


def write_text(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> None:
    """Write in the sheet's own type."""
    draw.text(corner, text, fill=INK, font=ImageFont.load_default(13))
