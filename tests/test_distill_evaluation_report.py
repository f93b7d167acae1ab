"""The evaluation sheet: what it draws, and what it never does."""

import numpy as np

from distill.evaluation.evaluate import Measured
from distill.evaluation.report import evaluation_sheet
from edge.recording.contact_sheet import MARK


def measured_from(recording, scores, map_value=0.0):
    maps = np.full((4, 5), map_value, np.float32)
    rows = recording.rows_in("test")
    return [
        Measured(row, score, score < 0.5, maps, {})
        for row, score in zip(rows, scores, strict=False)
    ]


def pixels_of(sheet):
    return np.asarray(sheet).astype(int)


def test_the_threshold_is_drawn_where_it_lies(simulated_line):
    measured = measured_from(simulated_line, [0.1, 0.2, 0.9])
    columns = {}
    for threshold in (0.2, 0.8):
        bands = pixels_of(evaluation_sheet(measured, simulated_line, threshold))[20:60]
        columns[threshold] = np.flatnonzero((bands == MARK).all(axis=2).all(axis=0)).mean()
    assert columns[0.2] < columns[0.8]


def test_a_map_of_zeros_leaves_the_pictures_as_they_are_and_one_of_ones_does_not(simulated_line):
    cold, hot = (
        pixels_of(
            evaluation_sheet(measured_from(simulated_line, [0.4, 0.6], heat), simulated_line, 0.5)
        )
        for heat in (0.0, 1.0)
    )
    assert cold.shape == hot.shape
    assert hot[..., 0].sum() > cold[..., 0].sum()


def test_a_split_without_a_mistake_is_drawn_too(simulated_line):
    normal = simulated_line.normal_class
    rows = simulated_line.rows_in("test")
    right = [0.1 if row.label == normal else 0.9 for row in rows]
    sheet = evaluation_sheet(measured_from(simulated_line, right), simulated_line, 0.5)
    assert sheet.width > 0
    assert sheet.height > 0
