"""The reference: figures that say what their names say, and a struct that a manifest can carry."""

import msgspec
import numpy as np
import pytest

from edge.reference import (
    FrameReference,
    Reference,
    ScoreReference,
    Spread,
    embedding_reference,
    frame_figures,
    middle_of,
    score_reference,
    spread_of,
    window_figures,
)


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(np.clip(levels, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def texture(seed=0, height=120, width=160) -> np.ndarray:
    return 120 + 25 * np.random.default_rng(seed).normal(size=(height, width))


def test_blur_lowers_focus_and_brightness_does_not():
    sharp = frame_figures(grey(texture())).focus
    blurred = texture()
    for axis in (0, 1):
        blurred = (np.roll(blurred, -1, axis) + 2 * blurred + np.roll(blurred, 1, axis)) / 4
    assert frame_figures(grey(blurred)).focus < sharp - 0.5
    assert frame_figures(grey(texture() * 0.8)).focus == pytest.approx(sharp, abs=0.02)


def test_exposure_counts_level_black_and_white():
    half = np.full((100, 80), 127.5)
    half[:, :40] = 0
    half[:, 60:] = 255
    figures = frame_figures(grey(half))
    assert figures.level == pytest.approx((0.25 * 127 + 0.25 * 255) / 255)
    assert (figures.black, figures.white) == (0.5, 0.25)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 3), (4, 700), (960, 1280)])
def test_frame_of_any_size_has_finite_figures(size):
    figures = frame_figures(grey(texture(1, *size)))
    assert all(np.isfinite([figures.focus, figures.level, figures.black, figures.white]))


def test_window_figures_follow_offset_and_gain():
    window = np.random.default_rng(0).normal(size=(2, 4096)).astype(np.float32)
    plain, shifted = window_figures(window), window_figures(1.5 * window + 3)
    np.testing.assert_allclose(plain.rms, 0.0, atol=0.05)
    np.testing.assert_allclose(shifted.rms - plain.rms, np.log(1.5), atol=1e-4)
    np.testing.assert_allclose(shifted.peak - plain.peak, np.log(1.5), atol=1e-4)
    np.testing.assert_allclose(shifted.level - 1.5 * plain.level, 3.0, atol=1e-4)
    assert np.isfinite(window_figures(np.zeros((1, 8), np.float32)).rms).all()


def test_middle_forgets_a_tenth_on_either_side():
    assert middle_of(np.array([1.0] * 8 + [900.0, -500.0])) == 1.0
    assert middle_of(np.array([2.0, 4.0])) == 3.0
    assert spread_of(np.array([5.0])) == Spread(5.0, 0.0)


@pytest.mark.parametrize(("scores", "bins"), [(400, 10), (100, 10), (55, 5), (20, 2), (19, 0)])
def test_fewer_scores_make_fewer_bins_of_equal_shares(scores, bins):
    made = score_reference(np.random.default_rng(0).random(scores))
    if not bins:
        assert made is None
        return
    assert len(made.shares) == bins == len(made.edges) + 1
    assert sum(made.shares) == pytest.approx(1.0)
    assert max(made.shares) - min(made.shares) <= 2 / scores + 1e-9


def test_scores_that_are_all_the_same_make_one_edge_and_no_error():
    made = score_reference(np.full(200, 0.25))
    assert (made.edges, made.shares) == ((0.25,), (0.0, 1.0))


def test_embedding_distance_is_that_of_a_part_the_mean_does_not_know():
    rng = np.random.default_rng(0)
    known, new = rng.normal(size=(12, 64)), rng.normal(size=(2_000, 64))
    made = embedding_reference(known.astype(np.float32))
    expected = np.linalg.norm(new - np.array(made.mean), axis=1).mean()
    assert made.distance.middle == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "broken",
    [
        b'{"edges": [0.1, 0.2], "shares": [0.5, 0.5], "samples": 9}',
        b'{"edges": [0.2, 0.1], "shares": [0.5, 0.2, 0.3], "samples": 9}',
        b'{"edges": [0.2], "shares": [-0.5, 1.5], "samples": 9}',
    ],
)
def test_histogram_that_is_none_is_refused_on_reading(broken):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(broken, type=ScoreReference)


def test_frames_within_a_tenth_of_the_references_sizes_have_a_focus_to_compare():
    even = Spread(0.0, 1.0)
    frame = FrameReference((320, 640), even, even, even, even)
    assert [frame.is_of_size(side) for side in (287, 288, 640, 704, 705)] == [
        *(False, True, True, True, False)
    ]


def test_what_too_few_parts_leave_out_reads_as_left_out():
    even = Spread(0.0, 1.0)
    frame = FrameReference((320, 320), even, even, even, even)
    mean = embedding_reference(np.zeros((4, 96), np.float32))
    some = Reference("val", 4, 4, frame, embedding=mean)
    assert "(embedding of 96, frames; too few for scores)" in str(some)
    none = msgspec.structs.replace(some, embedding=None)
    assert "(frames; too few for scores and an embedding)" in str(none)
    scores = score_reference(np.linspace(0, 1, 20))
    assert "(2 score bins, embedding of 96, frames)" in str(
        msgspec.structs.replace(some, scores=scores)
    )
