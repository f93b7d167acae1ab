"""The worst samples of a form, drawn: its own maps, what differs, and maps that are no numbers."""

from dataclasses import replace

import numpy as np
import pytest
from export_stand_in import TorchScorer, small_recording, spec_of, trained_student

from edge.recording.contact_sheet import CELL_PX, GAP_PX
from export.judge import judged_by
from export.parity import ONNX_INT8, parity_of
from export.worst_sheet import worst_sheet


class Altered:
    """A form that sees the same, but for one cell of the map."""

    def __init__(self, value):
        self._scorer, self._value = TorchScorer(trained_student(), spec_of()), value
        self.spec = self._scorer.spec

    def score(self, inputs):
        scores = self._scorer.score(inputs)
        changed = scores.anomaly_map.copy()
        changed[1, 6] = self._value
        return replace(scores, anomaly_map=changed, anomaly_score=scores.anomaly_score * 0.9)


def sheet_of(value):
    checkpoint, form = TorchScorer(trained_student(), spec_of()), Altered(value)
    rows = small_recording().rows_in("test")
    judged = judged_by({"before": checkpoint, "after": form}, small_recording(), rows)
    worst = parity_of(ONNX_INT8, judged["before"], judged["after"]).worst
    return np.asarray(worst_sheet(worst, small_recording(), checkpoint, form, "int8"), np.int16)


def column(sheet, number):
    left = GAP_PX + number * (CELL_PX + GAP_PX)
    return sheet[:, left : left + CELL_PX]


@pytest.mark.parametrize("value", [0.99, np.nan])
def test_what_differs_between_the_maps_is_where_the_drawings_differ(value):
    same, changed = sheet_of(0.0), sheet_of(value)
    moved = [np.abs(column(changed, n) - column(same, n)).sum() for n in range(4)]
    assert moved[0] == moved[1] == 0  # the picture with its readings, and the checkpoint's map
    assert moved[2] > 0
    assert moved[3] > 0 or np.isfinite(value)  # one scale over the sheet: its largest is full heat


def test_ten_worst_samples_stand_in_ten_rows():
    sheet = sheet_of(0.99)
    traces, rows = 2, 10
    assert sheet.shape[0] > rows * (CELL_PX + traces * 40)
    assert sheet.shape[1] == GAP_PX + 4 * (CELL_PX + GAP_PX)
    assert sheet.std() > 20
