"""A window that does not belong to what the image shows: found from normal parts alone."""

import pytest
import torch

from distill.students.relation import COMPONENTS, Relation

KINDS, STEM, SPECTRUM = 3, 20, 12


def parts(count, seed, *, swapped=False):
    """Parts of three kinds; each kind has its own look and its own sound, plus noise."""
    source = torch.Generator().manual_seed(7)
    looks, sounds = (torch.randn(KINDS, size, generator=source) for size in (STEM, SPECTRUM))
    own = torch.Generator().manual_seed(seed)
    kind = torch.arange(count) % KINDS
    heard = (kind + 1) % KINDS if swapped else kind
    image = looks[kind] + 0.1 * torch.randn(count, STEM, generator=own)
    return image, sounds[heard] + 0.1 * torch.randn(count, SPECTRUM, generator=own)


@pytest.fixture
def fitted():
    relation = Relation(STEM, SPECTRUM)
    relation.fit(*parts(90, seed=1))
    return relation


def test_a_window_of_another_kind_lies_beyond_what_normal_parts_reach(fitted):
    swapped = fitted.beyond_limit(fitted(*parts(30, seed=2, swapped=True)))
    usual = fitted.beyond_limit(fitted(*parts(30, seed=3)))
    assert swapped.shape == (30, 1)
    assert swapped.min() > 0.5
    assert usual.median() < 0.0


def test_each_half_alone_tells_nothing_of_a_swap(fitted):
    for half in (0, 1):
        usual, swapped = (parts(3000, seed=4, swapped=s)[half].mean(0) for s in (False, True))
        assert (usual - swapped).abs().max() < 0.02


def test_unfitted_it_never_disagrees():
    relation = Relation(STEM, SPECTRUM)
    assert relation(*parts(5, seed=5)).abs().max() == 0.0
    relation.fit(*parts(COMPONENTS, seed=6))  # too few to tell a relation from chance
    assert relation(*parts(5, seed=5)).abs().max() == 0.0


def test_channels_that_never_move_and_tiny_models_stay_finite():
    relation = Relation(4, 2)
    image, sensor = torch.randn(40, 4), torch.ones(40, 2)
    relation.fit(image, sensor)
    assert torch.isfinite(relation(image, sensor)).all()


def test_what_was_fitted_travels_with_the_weights(fitted):
    loaded = Relation(STEM, SPECTRUM)
    loaded.load_state_dict(fitted.state_dict())
    image, sensor = parts(10, seed=8)
    assert torch.equal(loaded(image, sensor), fitted(image, sensor))
