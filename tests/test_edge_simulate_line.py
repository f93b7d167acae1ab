"""The simulated line: its promises about seeds, labels, modalities, drift and dropouts."""

from collections import Counter

import numpy as np
import pytest
from image_folders import tree_of

from edge.artefact import new_folder
from edge.errors import InputError
from edge.recording.format import Recording, nanoseconds_of
from edge.recording.survey import survey_of
from edge.simulate.line import LineOrder, parts_of, simulate
from edge.simulate.part import BEARING, MISMATCH, OK, SURFACE
from edge.simulate.textures import HARD, SOFT


def simulated(out, **order):
    with new_folder(out) as partial:
        simulate(LineOrder(**order), partial)
    return Recording.open(out)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        simulated(tmp_path / name, parts=12, seed=seed, size=(64, 48))
    one, two, other = (tree_of(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert other.keys() == one.keys() or other != one
    assert one["samples.jsonl"] != other["samples.jsonl"]


def test_every_label_is_there_in_its_share(simulated_line):
    counts = Counter(row.label for row in simulated_line.rows)
    assert counts == {OK: 36, SURFACE: 9, BEARING: 7, MISMATCH: 8}
    assert simulated_line.header.classes == (OK, SURFACE, BEARING, MISMATCH)
    for split in ("train", "val", "test"):
        assert {row.label for row in simulated_line.rows_in(split)} == set(counts)


def test_what_it_writes_is_whole_but_for_its_stated_dropouts():
    counts = Counter(part.window for part in parts_of(LineOrder(parts=2000)))
    assert counts["absent"] / 2000 == pytest.approx(0.03, abs=0.015)
    assert counts["stuck"] / 2000 == pytest.approx(0.03, abs=0.015)


def test_its_oddities_are_dropouts_and_nothing_else(simulated_line):
    survey = survey_of(simulated_line)
    assert {oddity.kind for oddity in survey.oddities} <= {
        "missing sensor",
        "stuck channel",
        "tiny class",  # of a fixture this small
    }
    absent = sum(1 for row in simulated_line.rows if row.sensor is None)
    assert absent == sum(1 for oddity in survey.oddities if oddity.kind == "missing sensor")


def test_a_defect_that_only_the_window_shows_never_lacks_its_window():
    for part in parts_of(LineOrder(parts=3000)):
        if part.label in (BEARING, MISMATCH):
            assert part.window != "absent"


def test_a_mismatch_looks_and_sounds_as_usual_and_only_the_two_together_do_not():
    parts = parts_of(LineOrder(parts=6000))
    normal = [part for part in parts if part.label == OK]
    mismatched = [part for part in parts if part.label == MISMATCH]
    assert all(part.sound == part.finish.sound for part in normal)
    assert all(part.sound != part.finish.sound for part in mismatched)
    for seen in ("brushed", "ribbed", "cast"):
        shares = [
            sum(part.finish.name == seen for part in group) / len(group)
            for group in (normal, mismatched)
        ]
        assert shares[0] == pytest.approx(shares[1], abs=0.06)
    for group in (normal, mismatched):
        assert sum(part.sound == HARD for part in group) / len(group) == pytest.approx(
            0.5, abs=0.06
        )
    assert {SOFT, HARD} == {part.sound for part in parts}


def test_only_surface_defects_have_masks_and_the_masks_fit(simulated_line):
    for row in simulated_line.rows:
        mask = simulated_line.read_mask(row)
        assert (mask is not None) == (row.label == SURFACE)
        if mask is not None:
            assert mask.shape == (72, 96)
            assert 0 < mask.mean() < 0.25


def test_parts_pass_in_order_at_the_stated_pace(simulated_line):
    times = [nanoseconds_of(row.captured_at) for row in simulated_line.rows]
    assert times == sorted(times)
    pace = (len(times) - 1) / (times[-1] - times[0]) * 1e9
    assert pace == pytest.approx(simulated_line.header.parts_per_second, rel=0.02)


def test_the_lamp_ages_over_the_shift(tmp_path):
    recording = simulated(tmp_path / "rec", parts=80, size=(48, 36), defects=0.0)
    levels = [recording.read_sample(row).frame.pixels.mean() for row in recording.rows]
    assert np.mean(levels[:20]) > np.mean(levels[-20:])


def test_without_defects_there_is_one_class(tmp_path):
    recording = simulated(tmp_path / "rec", parts=12, size=(48, 36), defects=0.0)
    assert recording.header.classes == (OK,)


@pytest.mark.parametrize("size", [(40, 120), (333, 77), (33, 32)])
def test_any_image_size_is_drawn(tmp_path, size):
    recording = simulated(tmp_path / "rec", parts=12, size=size)
    for row in recording.rows:
        assert recording.read_sample(row).frame.pixels.shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    "order",
    [{"parts": 3}, {"seed": -1}, {"size": (8, 240)}, {"size": (320, 9000)}, {"defects": 1.0}],
)
def test_an_order_that_cannot_be_met_is_refused(order):
    with pytest.raises(InputError):
        LineOrder(**order)
