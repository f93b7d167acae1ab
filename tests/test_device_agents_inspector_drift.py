"""Drift: shifts are named, normal variety is not, and no verdict ever moves."""

import msgspec
import numpy as np
import pytest

from device_agents.inspector.drift import EVERY, LEAST, WINDOW, Drift
from device_agents.pairing.pair import Paired
from edge.model_spec import ImageInput, ModelSpec, SensorInput
from edge.reference import (
    FrameReference,
    Reference,
    channel_reference,
    embedding_reference,
    frame_figures,
    score_reference,
    spread_of,
    window_figures,
)
from edge.sample import Channel, Frame, Sample, Window
from edge.scorer import Scores
from edge.verdict import DecisionRule, Threshold, Verdict, verdict_of

CHANNELS = (Channel("drive_end", "g", 12000.0), Channel("load", "N", 12000.0))
RULE = DecisionRule(Threshold(0.5, 0.01, 200, True))
SPEC = ModelSpec("m", ImageInput(8, 8), SensorInput(CHANNELS, 256), ("ok", "bad"), 4, 4, 32, RULE)
MAP = np.zeros((4, 4), np.float32)


def part(rng, *, bright=1.0, blur=False, gain=1.0, offset=0.0, score=0.0, embedding=0.0):
    """A part of one of two finishes, as they come on a line: bright ones sound louder."""
    bright_finish = rng.random() < 0.4
    pixels = 90 + 20 * bright_finish + rng.normal(0, 5) + 14 * rng.normal(size=(48, 64))
    for axis in (0, 1) if blur else ():
        pixels = (np.roll(pixels, -1, axis) + 2 * pixels + np.roll(pixels, 1, axis)) / 4
    grey = np.clip(pixels * bright, 0, 255).astype(np.uint8)
    loud = gain * rng.normal(0.3, 0.02) * (1 + 0.3 * bright_finish)
    readings = (loud * rng.normal(size=(2, 256)) + offset).astype(np.float32)
    scores = Scores(
        np.float32([0.9, 0.1]),
        float(min(1.0, rng.beta(2, 20) + score)),
        MAP,
        (rng.normal(size=32) * np.linspace(1, 0.1, 32) + embedding).astype(np.float32),
    )
    frame = Frame(np.repeat(grey[:, :, None], 3, axis=2), 0)
    return Sample("p", frame, Window(readings, CHANNELS, 0)), scores


def reference_of_parts(parts) -> Reference:
    frames = [frame_figures(sample.frame.pixels) for sample, _ in parts]
    windows = [sample.window.values for sample, _ in parts]
    figures = [window_figures(window) for window in windows]

    def spread(name):
        return spread_of(np.array([getattr(frame, name) for frame in frames]))

    return Reference(
        split="val",
        samples=len(parts),
        parts=len(parts),
        frame=FrameReference((64, 64), *map(spread, ("focus", "level", "black", "white"))),
        scores=score_reference(np.array([scores.anomaly_score for _, scores in parts])),
        embedding=embedding_reference(np.stack([scores.embedding for _, scores in parts])),
        channels=tuple(
            channel_reference(channel.name, [w[index] for w in windows], figures, index)
            for index, channel in enumerate(CHANNELS)
        ),
    )


@pytest.fixture(scope="module")
def reference():
    rng = np.random.default_rng(0)
    return reference_of_parts([part(rng) for _ in range(150)])


def judged(scores: Scores) -> Verdict:
    return verdict_of(scores.anomaly_score, [0.9, 0.1], SPEC.classes, RULE, sensor_present=True)


def flags_after(drift: Drift, count: int, seed: int = 1, **shift) -> set[str]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        sample, scores = part(rng, **shift)
        drift.see(Paired(sample), scores, judged(scores))
    return set(drift.flags)


RANGES = {"sensor_range:drive_end", "sensor_range:load"}
LEVELS = {"sensor_rms:drive_end", "sensor_rms:load"}


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        ({"bright": 0.8}, {"exposure"}),
        ({"blur": True}, {"focus"}),
        ({"gain": 1.5}, LEVELS | RANGES),
        ({"offset": 0.2}, RANGES),
        ({"score": 0.05}, {"score_psi"}),
        ({"embedding": 1.0}, {"embedding_shift"}),
    ],
)
def test_each_shift_is_named_within_one_window_and_nothing_else_is(reference, shift, expected):
    drift = Drift(reference, SPEC)
    assert flags_after(drift, WINDOW) == set()
    assert flags_after(drift, WINDOW, seed=2, **shift) == expected
    # Back to normal: the window forgets, and the flags fall.
    assert flags_after(drift, WINDOW + EVERY, seed=3) == set()


def test_no_drift_raises_no_flag_over_thousands_of_parts_and_small_references():
    told = 0
    for seed, normals in enumerate((20, 40, 150)):
        rng = np.random.default_rng([7, seed])
        drift = Drift(reference_of_parts([part(rng) for _ in range(normals)]), SPEC)
        for _ in range(1_500):
            sample, scores = part(rng)
            told += bool(drift.see(Paired(sample), scores, judged(scores)))
    assert told == 0


def test_defects_on_an_otherwise_normal_line_are_no_drift(reference):
    rng = np.random.default_rng(5)
    drift = Drift(reference, SPEC)
    decisions = set()
    for number in range(600):
        defective = number % 14 == 0
        shift = {"gain": 3.0, "score": 0.7, "embedding": 2.0} if defective else {}
        sample, scores = part(rng, **shift)
        verdict = judged(scores)
        decisions.add(verdict.decision)
        assert drift.see(Paired(sample), scores, verdict) == ()
    assert decisions == {"pass", "fail"}


def test_flags_do_not_flutter_while_a_figure_lies_about_its_limit(reference):
    middle, deviation = reference.frame.level.middle, reference.frame.level.deviation
    rng = np.random.default_rng(6)
    drift, changes, before = Drift(reference, SPEC), 0, ()
    for number in range(3_000):
        sample, scores = part(rng)
        level = middle + deviation * (1.0 + 0.02 * np.sin(number / 40) + rng.normal(0, 0.6))
        grey = np.clip(level * 255 + 14 * rng.normal(size=(48, 64)), 0, 255).astype(np.uint8)
        frame = Frame(np.repeat(grey[:, :, None], 3, axis=2), 0)
        seen = Paired(Sample("p", frame, sample.window))
        flags = drift.see(seen, scores, judged(scores))
        changes += ("exposure" in flags) != ("exposure" in before)
        before = flags
    assert "exposure" in before
    assert changes == 1


def test_window_far_out_of_range_is_told_in_its_own_inspection_only(reference):
    drift, rng = Drift(reference, SPEC), np.random.default_rng(8)
    sample, scores = part(rng)
    sample.window.values[1, 10] = 50.0
    assert drift.see(Paired(sample), scores, judged(scores)) == ("sensor_range:load",)
    assert drift.flags == ()
    sample, scores = part(rng)
    assert drift.see(Paired(sample), scores, judged(scores)) == ()


def test_verdicts_are_the_same_with_and_without_drift(reference):
    def verdicts(watch):
        rng = np.random.default_rng(9)
        found, told = [], set()
        for number in range(300):
            sample, scores = part(rng, **({"bright": 0.5, "score": 0.4} if number > 100 else {}))
            verdict = judged(scores)
            before = (sample.frame.pixels.copy(), sample.window.values.copy(), scores, verdict)
            if watch:
                told.update(watch.see(Paired(sample), scores, verdict))
            np.testing.assert_array_equal(sample.frame.pixels, before[0])
            np.testing.assert_array_equal(sample.window.values, before[1])
            assert (scores, verdict) == before[2:]
            found.append(judged(scores))
        return found, told

    with_drift, told = verdicts(Drift(reference, SPEC))
    assert "exposure" in told
    assert with_drift == verdicts(None)[0]


def test_each_source_is_watched_by_itself(reference):
    drift, rng = Drift(reference, SPEC), np.random.default_rng(10)
    for _ in range(LEAST + EVERY):
        for source, bright in (("left", 1.0), ("right", 0.5)):
            sample, scores = part(rng, bright=bright)
            told = drift.see(Paired(sample, source=source), scores, judged(scores))
            assert not (told and source == "left")
    assert drift.flags == ("exposure",)


def test_parts_without_a_window_say_nothing_of_sensor_scores_or_embedding(reference):
    drift, rng = Drift(reference, SPEC), np.random.default_rng(11)
    for _ in range(WINDOW):
        sample, scores = part(rng, score=0.2, embedding=3.0)
        alone = Sample("p", sample.frame, None)
        assert drift.see(Paired(alone), scores, judged(scores)) == ()


def test_scores_and_embeddings_that_are_no_numbers_are_left_out(reference):
    drift, rng = Drift(reference, SPEC), np.random.default_rng(12)
    for number in range(WINDOW):
        sample, scores = part(rng)
        if number % 3 == 0:
            nothing = np.full(32, np.nan, np.float32)
            scores = Scores(scores.class_scores, float("nan"), MAP, nothing)
        assert drift.see(Paired(sample), scores, Verdict("pass", "ok", 0.1, 0.5)) == ()


def test_frames_of_another_size_have_no_focus_to_compare(reference):
    drift, rng = Drift(reference, SPEC), np.random.default_rng(13)
    for _ in range(WINDOW):
        sample, scores = part(rng, blur=True)
        large = np.repeat(np.repeat(sample.frame.pixels, 2, axis=0), 2, axis=1)
        seen = Paired(Sample("p", Frame(large, 0), sample.window))
        told = drift.see(seen, scores, judged(scores))
        assert "focus" not in told


def test_old_bundle_without_a_reference_flags_nothing(reference):
    drift = Drift(None, SPEC)
    assert flags_after(drift, LEAST + EVERY, bright=0.2) == set()


def test_reference_without_scores_still_watches_the_rest(reference):
    few = msgspec.structs.replace(reference, scores=None, embedding=None, channels=())
    shift = {"bright": 0.6, "score": 0.3, "embedding": 3.0, "gain": 2.0}
    assert flags_after(Drift(few, SPEC), WINDOW, **shift) == {"exposure"}
