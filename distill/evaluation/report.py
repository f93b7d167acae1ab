"""An evaluation on one sheet: where the scores lie, and the samples a person should look at.

Heat maps are drawn on one fixed scale from 0 to 1. A scale of each picture's own would make the
noise of a good part look like a defect.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from distill.evaluation.evaluate import Measured
from edge.recording.contact_sheet import (
    BACKGROUND,
    CELL_PX,
    COLUMNS,
    FAINT,
    GAP_PX,
    MARK,
    TEXT_PX,
    TRACE_COLOURS,
    draw_cell,
    marked_picture,
    write_text,
)
from edge.recording.format import Recording

BAND_PX = 44  # height of one label's band of scores
BINS = 100
_LABEL_PX = 180  # room for a label left of its band
_HEAT = np.array([255, 60, 0], dtype=np.float32)
_HEAT_OPACITY = 0.6  # of a map value of 1


def evaluation_sheet(
    measured: Sequence[Measured], recording: Recording, threshold: float
) -> Image.Image:
    """Draw the scores by label, then the worst escapes and overkill, and the closest calls."""
    normal = recording.normal_class
    by_score = sorted(measured, key=lambda m: m.score)
    escapes = [m for m in by_score if m.row.label != normal and m.passed]
    overkill = [m for m in reversed(by_score) if m.row.label == normal and not m.passed]
    nearest = sorted(measured, key=lambda m: abs(m.score - threshold))
    rows = [
        (f"escapes: {len(escapes)} defective parts that passed", escapes),
        (f"overkill: {len(overkill)} good parts that failed", overkill),
        (f"nearest to the threshold of {threshold:.4f}", nearest),
    ]
    labels = [normal, *sorted({m.row.label for m in measured} - {normal})]
    bands_height = TEXT_PX + BAND_PX * len(labels) + TEXT_PX + GAP_PX
    row_height = TEXT_PX + CELL_PX + 2 * TEXT_PX + GAP_PX
    width = GAP_PX + COLUMNS * (CELL_PX + GAP_PX)
    sheet = Image.new("RGB", (width, bands_height + row_height * len(rows)), BACKGROUND)
    _draw_bands(sheet, measured, labels, threshold)
    for place, (title, chosen) in enumerate(rows):
        top = bands_height + place * row_height
        write_text(ImageDraw.Draw(sheet), (GAP_PX, top), title)
        for column, m in enumerate(chosen[:COLUMNS]):
            left = GAP_PX + column * (CELL_PX + GAP_PX)
            _draw_sample(sheet, (left, top + TEXT_PX), m, recording)
    return sheet


def _draw_bands(
    sheet: Image.Image, measured: Sequence[Measured], labels: Sequence[str], threshold: float
) -> None:
    """One histogram of anomaly scores a label, all on the same axis from 0 to 1."""
    draw = ImageDraw.Draw(sheet)
    left, right = GAP_PX + _LABEL_PX, sheet.width - GAP_PX
    write_text(draw, (GAP_PX, 0), "anomaly score, 0 to 1; the red line is the threshold")
    for place, label in enumerate(labels):
        bottom = TEXT_PX + (place + 1) * BAND_PX
        scores = np.array([m.score for m in measured if m.row.label == label])
        write_text(draw, (GAP_PX, bottom - 20), f"{label}: {len(scores)}")
        draw.line([(left, bottom), (right, bottom)], fill=FAINT)
        counts, _ = np.histogram(np.clip(scores, 0.0, 1.0), bins=BINS, range=(0.0, 1.0))
        # The root keeps a single straggler visible beside a crowd.
        heights = np.sqrt(counts / max(1, counts.max())) * (BAND_PX - 6)
        step = (right - left) / BINS
        for bin_number, height in enumerate(heights):
            if height:
                x = left + bin_number * step
                box = (x, bottom - float(height), x + step - 1, bottom)
                draw.rectangle(box, fill=TRACE_COLOURS[place % len(TRACE_COLOURS)])
    x = left + min(max(threshold, 0.0), 1.0) * (right - left)
    draw.line([(x, TEXT_PX), (x, TEXT_PX + BAND_PX * len(labels))], fill=MARK, width=2)


def _draw_sample(
    sheet: Image.Image, corner: tuple[int, int], m: Measured, recording: Recording
) -> None:
    left, top = corner
    picture = heated(marked_picture(recording, m.row, recording.read_sample(m.row)), m.map_hw)
    verdict = "pass" if m.passed else "fail"
    draw_cell(sheet, corner, picture, None, (), f"{m.row.label} -> {verdict}, {m.score:.4f}")
    below = (left, top + CELL_PX + TEXT_PX)
    write_text(ImageDraw.Draw(sheet), below, m.row.sample_id[-26:])


def heated(picture: Image.Image, map_hw: NDArray[np.float32]) -> Image.Image:
    """Lay a map from 0 to 1 over the picture: 0 leaves it as it is, and no number shows as 1."""
    size = picture.size
    map_hw = np.clip(np.nan_to_num(map_hw, nan=1.0), 0.0, 1.0)
    fine = Image.fromarray(map_hw).resize(size, Image.Resampling.BILINEAR)
    opacity = np.asarray(fine)[:, :, None] * _HEAT_OPACITY
    mixed = np.asarray(picture, dtype=np.float32) * (1 - opacity) + _HEAT * opacity
    return Image.fromarray(mixed.astype(np.uint8))
