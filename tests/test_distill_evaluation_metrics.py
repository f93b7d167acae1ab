import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.evaluation.metrics import aupro, auroc, clopper_pearson


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_chance_that_a_defect_scores_above_a_good_part(pairs):
    scores = np.array([float(score) for score, _ in pairs])
    anomalous = np.array([bad for _, bad in pairs])
    bad, good = scores[anomalous], scores[~anomalous]
    if not len(bad) or not len(good):
        assert auroc(scores, anomalous) is None
        return
    wins = [1.0 if b > g else 0.5 if b == g else 0.0 for b, g in itertools.product(bad, good)]
    assert auroc(scores, anomalous) == pytest.approx(np.mean(wins))


def test_clopper_pearson_agrees_with_the_textbook():
    # Newcombe, Statistics in Medicine 17, 1998, table I: 81 of 263 and 0 of 20.
    rate = clopper_pearson(81, 263)
    assert (rate.low, rate.high) == (
        pytest.approx(0.2527, abs=1e-4),
        pytest.approx(0.3676, abs=1e-4),
    )
    nothing = clopper_pearson(0, 20)
    assert (nothing.value, nothing.low) == (0.0, 0.0)
    assert nothing.high == pytest.approx(0.1684, abs=1e-4)


def test_a_rate_of_nothing_is_none():
    assert clopper_pearson(0, 0).value is None


def masks(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        mask = np.zeros((40, 40), np.bool_)
        top, left = random.integers(0, 30, 2)
        mask[top : top + 6, left : left + 4] = True
        found.append(mask)
    return found


def test_a_perfect_map_has_aupro_one_and_noise_has_what_chance_gives():
    perfect = aupro((mask * np.float32(0.9) + np.float32(0.01), mask) for mask in masks(10))
    assert perfect == pytest.approx(1.0, abs=1e-6)
    random = np.random.default_rng(1)
    noise = aupro((random.random((40, 40), dtype=np.float32), mask) for mask in masks(60))
    # A map of noise covers as much of each region as of the rest: the curve is the diagonal.
    assert noise == pytest.approx(0.15, abs=0.03)


def test_small_regions_count_as_much_as_large_ones():
    mask = np.zeros((40, 40), np.bool_)
    mask[2:22, 2:22] = True
    mask[30:32, 30:32] = True
    found_large = np.where(mask, np.float32(0.0), np.float32(0.1))
    found_large[2:22, 2:22] = 0.9
    assert aupro([(found_large, mask)]) == pytest.approx(0.5, abs=0.02)


def test_without_any_region_there_is_no_aupro():
    assert aupro([(np.zeros((8, 8), np.float32), np.zeros((8, 8), np.bool_))]) is None
    assert aupro([]) is None
