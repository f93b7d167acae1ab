"""Copies on one sheet: what a recipe makes of a few training parts, seen before it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from distill.augment.copies import BROKEN_IMAGE, Copies, generator_for
from distill.augment.made_defects import broken_picture
from distill.augment.made_faults import broken_window
from distill.augment.pictures import Picture
from distill.dataset import TrainingParts, evenly
from distill.recipe import Recipe
from edge.recording.contact_sheet import (
    BACKGROUND,
    CELL_PX,
    COLUMNS,
    GAP_PX,
    MARK,
    TEXT_PX,
    TRACE_PX,
    draw_cell,
    outline_of,
    write_text,
)

_PARTS = 4

Window = NDArray[np.float32]
Range = tuple[float, float]


@dataclass(frozen=True)
class _Cell:
    """One copy, as it is drawn."""

    picture: Picture
    window: Window | None
    caption: str


def copies_sheet(parts: TrainingParts, recipe: Recipe) -> Image.Image:
    """Draw a few parts of each class, each with its copies, and made defects. Raises InputError.

    A thin line surrounds what the mask covers. A row's channels have one scale each, so that a
    changed gain shows.
    """
    copies = Copies(parts, recipe)
    rows = [_copies_of(copies, index) for index in _chosen(parts)]
    rows.append(_made_defects(copies))
    channels = 0 if parts.spec.sensor is None else len(parts.spec.sensor.channels)
    row_height = CELL_PX + TRACE_PX * channels + TEXT_PX + GAP_PX
    size = (GAP_PX + COLUMNS * (CELL_PX + GAP_PX), TEXT_PX + 2 * GAP_PX + row_height * len(rows))
    sheet = Image.new("RGB", size, BACKGROUND)
    title = f"{parts.recording.header.name}: originals, copies by '{recipe.name}', and made defects"
    write_text(ImageDraw.Draw(sheet), (GAP_PX, GAP_PX), title)
    for number, cells in enumerate(rows):
        top = TEXT_PX + 2 * GAP_PX + number * row_height
        ranges = _ranges(cells, channels)
        for column, cell in enumerate(cells):
            corner = (GAP_PX + column * (CELL_PX + GAP_PX), top)
            draw_cell(sheet, corner, _marked(cell.picture), cell.window, ranges, cell.caption)
    return sheet


def _chosen(parts: TrainingParts) -> list[int]:
    """Choose parts of every label in turn, each label evenly."""
    labels = np.array([row.label for row in parts.rows], dtype=object)
    by_label = [np.flatnonzero(labels == label) for label in dict.fromkeys(labels)]
    spread = [iter(indices[evenly(len(indices), _PARTS)]) for indices in by_label]
    chosen = []
    for _ in range(_PARTS):
        chosen += [int(index) for one in spread if (index := next(one, None)) is not None]
    return chosen[: max(_PARTS, len(spread))]


def _copies_of(copies: Copies, index: int) -> list[_Cell]:
    """Return the original and its first copies, each as the first epoch would meet it."""
    row = copies.parts.rows[index]
    original = _Cell(copies.picture(index, 0), copies.window(index, 0), _caption(row.sample_id))
    cells = [original]
    for number in range(1, COLUMNS):
        broken = copies.broken(index, number)
        what = f"{row.label}, copy {number}"
        if broken:
            what += ", made defect" if broken & BROKEN_IMAGE else ", made fault"
        picture, window = copies.picture(index, number), copies.window(index, number, epoch=0)
        cells.append(_Cell(picture, window, what))
    return cells


def _made_defects(copies: Copies) -> list[_Cell]:
    """Return a normal part with one made defect and one made fault after another."""
    parts, recipe = copies.parts, copies.recipe
    index = int(np.flatnonzero(parts.normal_N == 1.0)[0])
    row = parts.rows[index]
    picture, window = Picture(parts.image(index), parts.mask(index)), parts.window(index)
    cells = []
    for number in range(COLUMNS):
        painter, breaker = generator_for(recipe.seed, row.sample_id, number).spawn(2)
        broken = None if window is None else broken_window(window, recipe.augment, breaker)
        painted = broken_picture(picture, recipe.augment, painter)
        cells.append(_Cell(painted, broken, f"made defect {number + 1}"))
    return cells


def _caption(sample_id: str) -> str:
    return f"original {sample_id[-22:]}"


def _ranges(cells: Sequence[_Cell], channels: int) -> list[Range]:
    """Lowest and highest reading of each channel over one row."""
    windows = [cell.window for cell in cells if cell.window is not None]
    if not windows:
        return [(0.0, 1.0)] * channels
    all_CT = np.concatenate(windows, axis=1)
    return list(zip(all_CT.min(1).tolist(), all_CT.max(1).tolist(), strict=True))


def _marked(picture: Picture) -> Image.Image:
    """Return the picture, no larger than a cell, with a thin line around its mask."""
    small = Image.fromarray(picture.pixels)
    small.thumbnail((CELL_PX, CELL_PX))
    if picture.mask is not None and picture.mask.any():
        small.paste(MARK, mask=outline_of(picture.mask, small.size))
    return small
