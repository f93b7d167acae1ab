"""Each loss against its formula, written out by hand, and the rule that pieces add up."""

import math

import numpy as np
import pytest
import torch

from distill.dataset import UNKNOWN
from distill.training.losses import (
    dense_feature_loss,
    label_loss,
    map_loss,
    mean_over_teachers,
    score_loss,
    soft_label_loss,
    summary_loss,
)


def weights(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_label_loss_is_cross_entropy_with_the_named_class():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    expected = 0.5 * math.log(1 + math.exp(-2)) + 0.5 * math.log(1 + math.exp(1))

    assert label_loss(logits, torch.tensor([0, 0]), weights(0.5, 0.5)) == pytest.approx(expected)


def test_part_that_nobody_labelled_has_no_part_in_the_label_loss():
    logits = torch.tensor([[2.0, 0.0], [9.0, -9.0]], requires_grad=True)

    loss = label_loss(logits, torch.tensor([0, UNKNOWN]), weights(1.0, 0.0))
    loss.backward()

    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert logits.grad[1].abs().max() == 0.0


def test_soft_labels_equal_to_the_students_own_leave_no_gradient():
    logits = torch.tensor([[1.0, 0.2, -0.5]], requires_grad=True)
    own = torch.softmax(logits.detach(), 1)

    for temperature in (1.0, 4.0):
        logits.grad = None
        soft_label_loss(logits, own, weights(1.0), temperature).backward()
        assert logits.grad.abs().max() < 1e-6


def test_temperature_keeps_the_size_of_the_gradient():
    """Hinton's factor: the gradient scales as 1 / T squared, and is scaled back."""
    soft = torch.tensor([[0.7, 0.2, 0.1]])
    sizes = []
    for temperature in (4.0, 16.0):
        logits = torch.tensor([[0.3, -0.1, 0.2]], requires_grad=True)
        soft_label_loss(logits, soft, weights(1.0), temperature).backward()
        sizes.append(logits.grad.norm().item())

    assert sizes[0] == pytest.approx(sizes[1], rel=0.15)


def test_class_that_the_teacher_rules_out_costs_no_infinity():
    loss = soft_label_loss(
        torch.tensor([[50.0, -50.0]]), torch.tensor([[0.0, 1.0]]), weights(1.0), 2.0
    )

    assert math.isfinite(loss.item())


def test_score_loss_is_least_where_the_score_is_the_probability():
    target = torch.tensor([0.3])
    at = {p: score_loss(torch.logit(torch.tensor([p])), target, weights(1.0)) for p in (0.2, 0.4)}
    best = score_loss(torch.logit(target), target, weights(1.0))

    assert best < min(at.values())
    assert best == pytest.approx(-(0.3 * math.log(0.3) + 0.7 * math.log(0.7)))


def test_map_loss_averages_over_cells_before_parts_are_weighed():
    logits = torch.zeros(2, 3, 5)

    loss = map_loss(logits, torch.zeros(2, 3, 5), weights(1.0, 3.0))

    assert loss == pytest.approx(4.0 * math.log(2))


def test_dense_features_cost_a_parabola_near_and_a_line_far():
    own = torch.zeros(1, 1, 2)

    near = dense_feature_loss(own, torch.full((1, 1, 2), 0.5), weights(1.0))
    far = dense_feature_loss(own, torch.full((1, 1, 2), 3.0), weights(1.0))

    assert (near.item(), far.item()) == (0.125, 2.5)


def test_summary_loss_sees_direction_and_not_length():
    own = torch.tensor([[1.0, 0.0]])

    assert summary_loss(own, torch.tensor([[7.0, 0.0]]), weights(1.0)) == pytest.approx(0.0)
    assert summary_loss(own, torch.tensor([[0.0, 0.1]]), weights(1.0)) == pytest.approx(1.0)
    assert summary_loss(own, torch.tensor([[-2.0, 0.0]]), weights(1.0)) == pytest.approx(2.0)


def test_second_teacher_does_not_make_features_count_for_more():
    one = [torch.tensor(0.4)]

    assert mean_over_teachers(one * 2) == mean_over_teachers(one)


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_two_pieces_of_a_batch_average_to_the_whole_wherever_it_is_cut(cut):
    random = torch.Generator().manual_seed(cut)
    logits = torch.randn(8, 4, generator=random)
    label = torch.from_numpy(np.array([0, 3, UNKNOWN, 1, 2, UNKNOWN, 0, 1]))
    weight = (label != UNKNOWN).float() / 6.0

    whole = label_loss(logits, label, weight)
    pieces = [slice(0, cut), slice(cut, None)]
    halves = [label_loss(logits[p], label[p], 2.0 * weight[p]) for p in pieces]

    assert torch.stack(halves).mean() == pytest.approx(whole.item())
