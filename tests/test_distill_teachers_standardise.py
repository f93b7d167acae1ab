import torch

from distill.teachers.standardise import basis_of


def correlated(points: int, features: int, *, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=random)
    return torch.randn(points, features, generator=random) @ mixing + 5.0


def test_features_of_any_scale_come_out_with_variance_one():
    points = correlated(4000, 40)
    for scale in (1e-4, 1.0, 1e4):
        reduced = basis_of(points * scale, 16).reduce(points * scale)
        assert reduced.shape == (4000, 16)
        assert abs(float(reduced.var(0).mean()) - 1.0) < 1e-2
        assert reduced.mean(0).abs().max() < 1e-2


def test_a_thousandfold_larger_teacher_gives_the_same_features():
    points = correlated(3000, 24)
    for size in (8, 64):
        small, large = basis_of(points, size), basis_of(points * 1000.0, size)
        torch.testing.assert_close(
            small.reduce(points), large.reduce(points * 1000.0), atol=1e-3, rtol=1e-3
        )


def test_a_teacher_of_few_features_keeps_them_and_leaves_the_rest_at_zero():
    points = correlated(500, 6)
    reduced = basis_of(points, 10).reduce(points)
    torch.testing.assert_close(reduced[:, :6].var(0), torch.ones(6), atol=1e-2, rtol=0)
    assert (reduced[:, 6:] == 0).all()


def test_few_points_give_no_more_components_than_they_can_know():
    points = correlated(5, 200)
    reduced = basis_of(points, 64).reduce(points)
    assert reduced.isfinite().all()
    assert (reduced[:, 4:] == 0).all()
    assert (reduced[:, :4] != 0).any()
    assert basis_of(points[:1], 64).reduce(points).isfinite().all()


def test_a_feature_that_stands_still_says_nothing():
    points = correlated(300, 8)
    points[:, 3] = 2.5
    for size in (4, 16):
        basis = basis_of(points, size)
        changed = points.clone()
        changed[:, 3] = 1e6
        torch.testing.assert_close(basis.reduce(changed), basis.reduce(points))


def test_distances_are_kept_where_every_component_is():
    points = correlated(2000, 12)
    standard = (points - points.mean(0)) / points.std(0, unbiased=False)
    reduced = basis_of(points, 12).reduce(points)
    torch.testing.assert_close(
        torch.pdist(reduced[:50]), torch.pdist(standard[:50]), atol=1e-3, rtol=1e-3
    )
