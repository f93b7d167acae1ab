"""Calibration samples unlike the training's are found, and said by how much and in what."""

import functools
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from export_stand_in import TorchScorer, small_recording, spec_of, trained_student

from distill.evaluation.reference import COMPARED_PARTS, normal_rows, reference_of_training
from edge.errors import InputError
from edge.reference import Reference
from export.likeness import described, deviations_text, differences_between, refuse_unlike


def silent(_title):
    """A progress that shows nothing."""
    return lambda items: items


class Altered:
    """The small recording, seen through another lamp or heard through another sensor."""

    def __init__(self, *, light=1.0, gain=1.0, scale=1):
        self._recording, self._light, self._gain = small_recording(), light, gain
        self._scale = scale
        self.normal_class, self.folder = self._recording.normal_class, self._recording.folder

    def read_sample(self, row):
        sample = self._recording.read_sample(row)
        pixels = np.clip(sample.frame.pixels * self._light, 0, 255).astype(np.uint8)
        pixels = pixels.repeat(self._scale, axis=0).repeat(self._scale, axis=1)
        window = replace(sample.window, values=sample.window.values * np.float32(self._gain))
        return replace(sample, frame=replace(sample.frame, pixels=pixels), window=window)


def rows(split):
    return small_recording().rows_in(split)


@functools.cache
def differences(**altered):
    scorer = TorchScorer(trained_student(), spec_of())
    training = described(scorer, small_recording(), rows("train")[:60])
    return differences_between(training, described(scorer, Altered(**altered), rows("train")[60:]))


def test_other_samples_of_the_same_line_are_alike():
    found = differences()
    assert found[0].deviations < 1.5
    refuse_unlike(found, small_recording())
    figures = {one.figure for one in found}
    assert {"brightness", "focus", "embedding", "drive_end rms", "fan_end level"} <= figures


@pytest.mark.parametrize(
    ("altered", "figure"), [({"light": 0.5}, "brightness"), ({"gain": 4.0}, "drive_end rms")]
)
def test_other_light_or_gain_is_refused_by_its_figure(altered, figure):
    found = differences(**altered)
    assert {one.figure: one.deviations for one in found}[figure] > 4
    with pytest.raises(InputError, match=r"distil on a recording of how it is now") as caught:
        refuse_unlike(found, small_recording())
    assert f"{found[0].figure} {found[0].deviations:.1f} deviations" in str(caught.value)


def test_focus_of_frames_of_another_size_is_not_compared():
    same, twice = differences(), differences(scale=2)
    assert {one.figure for one in same} - {one.figure for one in twice} == {"focus"}
    refuse_unlike(twice, small_recording())
    assert deviations_text(twice).endswith(" (focus not compared: frames of another size)")
    assert "focus not" not in deviations_text(same)


def test_the_largest_difference_comes_first():
    deviations = [one.deviations for one in differences(light=0.5)]
    assert deviations == sorted(deviations, reverse=True)


def test_recording_without_normal_parts_cannot_be_compared():
    scorer = TorchScorer(trained_student(), spec_of())
    odd = tuple(row for row in rows("train") if row.label != "ok")
    with pytest.raises(InputError, match="labelled 'ok'"):
        described(scorer, small_recording(), odd)


def test_large_recordings_are_compared_on_a_share_of_their_parts():
    many = rows("train") * 20
    assert 0 < len(normal_rows(small_recording(), many)) <= COMPARED_PARTS


def test_what_a_run_keeps_of_its_training_parts_compares_as_the_recording_itself_does():
    scorer, recording = TorchScorer(trained_student(), spec_of()), small_recording()
    kept = reference_of_training(scorer, recording, rows("train")[:60], silent)
    kept = msgspec.json.decode(msgspec.json.encode(kept), type=Reference)
    assert kept == described(scorer, recording, rows("train")[:60])
    assert (kept.split, kept.samples) == ("train", 20)  # normal ones alone
