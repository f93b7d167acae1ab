"""The samples that a form judges worst, drawn: where does it see otherwise than the checkpoint?

One row a sample: its picture and readings, what the checkpoint sees in it, what the form sees, and
where the two maps differ. The maps have one scale, from 0 to 1; their differences are small, so
they have a scale of their own, one over the whole sheet, and its end is written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from distill.evaluation.report import heated
from edge.bundle import WorstSample
from edge.prepare import model_inputs
from edge.recording.contact_sheet import (
    BACKGROUND,
    CELL_PX,
    GAP_PX,
    TEXT_PX,
    TRACE_PX,
    draw_cell,
    marked_picture,
    ranges_of,
    write_text,
)
from edge.recording.format import Recording, SampleRow
from edge.sample import Sample
from edge.scorer import Scorer, verdict_from

_CELLS = 4  # picture, checkpoint, form, difference
_LEAST_END = 1e-6  # of the differences' scale


@dataclass(frozen=True)
class _Seen:
    """One sample, and what both say of it."""

    worst: WorstSample
    row: SampleRow
    sample: Sample
    maps: tuple[NDArray[np.float32], NDArray[np.float32]]  # of checkpoint and form
    said: tuple[str, str]

    @property
    def apart(self) -> NDArray[np.float32]:
        """How far the maps differ in each cell, infinite where one is no number."""
        apart: NDArray[np.float32] = np.abs(self.maps[1] - self.maps[0])
        return np.nan_to_num(apart, nan=np.inf)


def worst_sheet(
    worst: Sequence[WorstSample], recording: Recording, checkpoint: Scorer, form: Scorer, name: str
) -> Image.Image:
    """Score the worst samples again with both, and draw them; `name` is the form's."""
    rows = {row.sample_id: row for row in recording.rows}
    seen = [_seen(one, recording, rows[one.sample_id], (checkpoint, form)) for one in worst]
    channels = len(recording.header.channels)
    ranges = ranges_of([one.sample for one in seen], channels)
    row_height = TEXT_PX + CELL_PX + TRACE_PX * channels + TEXT_PX + GAP_PX
    top = TEXT_PX + 2 * GAP_PX
    size = (GAP_PX + _CELLS * (CELL_PX + GAP_PX), top + row_height * len(seen))
    sheet = Image.new("RGB", size, BACKGROUND)
    finite = [one.apart[np.isfinite(one.apart)] for one in seen]
    end = max((float(apart.max(initial=0.0)) for apart in finite), default=0.0)
    title = f"{name} against the checkpoint: the {len(seen)} worst samples; "
    title += f"maps 0 to 1, differences 0 to {end:.3g}"
    write_text(ImageDraw.Draw(sheet), (GAP_PX, GAP_PX), title)
    for number, one in enumerate(seen):
        _draw_row(sheet, top + number * row_height, one, recording, (ranges, name, end))
    return sheet


def _seen(
    worst: WorstSample, recording: Recording, row: SampleRow, scorers: tuple[Scorer, Scorer]
) -> _Seen:
    sample = recording.read_sample(row)
    before, after = (_judged(scorer, sample) for scorer in scorers)
    return _Seen(worst, row, sample, (before[0], after[0]), (before[1], after[1]))


def _judged(scorer: Scorer, sample: Sample) -> tuple[NDArray[np.float32], str]:
    inputs = model_inputs(sample, scorer.spec)
    scores = scorer.score(inputs)
    decision = verdict_from(scores, inputs, scorer.spec).decision
    return scores.anomaly_map, f"{scores.anomaly_score:.4f} {decision}"


def _draw_row(
    sheet: Image.Image,
    top: int,
    one: _Seen,
    recording: Recording,
    scales: tuple[Sequence[tuple[float, float]], str, float],
) -> None:
    ranges, name, end = scales
    moved = abs(one.worst.form_score - one.worst.checkpoint_score)
    title = f"{one.row.sample_id[-48:]} ({one.row.label or 'unlabelled'}), threshold "
    title += f"{one.worst.threshold:.4f}" + (", THE VERDICT DIFFERS" if one.worst.flipped else "")
    write_text(ImageDraw.Draw(sheet), (GAP_PX, top), title)
    picture = marked_picture(recording, one.row, one.sample)
    window = None if one.sample.window is None else one.sample.window.values
    corners = [(GAP_PX + cell * (CELL_PX + GAP_PX), top + TEXT_PX) for cell in range(_CELLS)]
    draw_cell(sheet, corners[0], picture, window, ranges, one.worst.image[-28:])
    for corner, map_hw, said in zip(
        corners[1:],
        (*one.maps, one.apart / max(end, _LEAST_END)),
        (f"checkpoint {one.said[0]}", f"{name} {one.said[1]}", f"score apart {moved:.2g}"),
        strict=True,
    ):
        draw_cell(sheet, corner, heated(picture, map_hw), None, (), said)
