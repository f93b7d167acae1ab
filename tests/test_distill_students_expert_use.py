"""What experts do with tokens, measured where it is known."""

import pytest
import torch
from torch import nn

from distill.students.expert_use import expert_text, expert_use
from distill.students.trunk import MASKED, BlockShape, Experts, Trunk, layout_for

EXPERTS = 4


def of_router(weight_ED: torch.Tensor) -> Experts:
    torch.manual_seed(0)
    experts = Experts(weight_ED.shape[1], 8, len(weight_ED))
    experts.router.weight.data = weight_ED
    return experts


def test_experts_that_part_the_tokens_among_them_leave_none_out():
    # Token n points along axis n % 4, and so does expert n % 4; each takes half of eight tokens,
    # its own two first.
    experts = of_router(torch.eye(EXPERTS) * 9.0)
    x = torch.eye(EXPERTS).repeat(2, 1)[None]
    (use,) = expert_use(nn.ModuleDict({"mlp": experts}), lambda: experts(x))
    assert use.block == "mlp"
    assert use.token_shares == pytest.approx((0.25,) * EXPERTS)
    assert use.weight_shares == pytest.approx((0.25,) * EXPERTS, abs=0.01)
    assert use.taken_by_none == 0.0
    assert use.chance_overlap == pytest.approx(0.5)


def test_experts_that_agree_take_the_same_tokens_and_leave_the_rest():
    experts = of_router(torch.zeros(EXPERTS, EXPERTS))
    experts.router.weight.data[0, 0] = 9.0  # the first one's weight follows the first axis
    experts.router.weight.data[1:] = torch.randn(EXPERTS - 1, 1) * 1e-3
    x = torch.zeros(1, 8, EXPERTS)
    x[0, :, 0] = torch.linspace(-1, 1, 8)
    (use,) = expert_use(experts, lambda: experts(x))
    # The first takes the tokens with most of the axis; to the others those are the least wanted.
    assert use.taken_by_none == 0.0
    assert use.overlap == pytest.approx(0.5)  # the other three agree: 6 of 12 pairs
    experts.router.weight.data[:] = 1.0
    (use,) = expert_use(experts, lambda: experts(x))
    assert use.overlap == 1.0
    assert use.taken_by_none == 0.5


def test_tokens_that_are_absent_count_nowhere():
    experts = of_router(torch.randn(EXPERTS, EXPERTS, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(2, 8, EXPERTS, generator=torch.Generator().manual_seed(2))
    bias = torch.zeros(2, 1, 1, 8)
    bias[:, ..., 2:] = MASKED
    (use,) = expert_use(experts, lambda: experts(x, bias))
    # Each takes four of eight, but only two are there: they are taken by all, and that is all.
    assert use.taken_by_none == 0.0
    assert use.overlap == use.chance_overlap == 1.0
    assert sum(use.weight_shares) == pytest.approx(1.0)


def test_measuring_changes_nothing_and_leaves_no_hook():
    torch.manual_seed(0)
    shape = BlockShape(width=16, heads=2, hidden=32, experts=EXPERTS)
    trunk = Trunk(2, shape, layout_for(3, (4, 4), 0), global_every=1).eval()
    x = torch.randn(2, 19, 16)
    before = trunk(x)
    uses = expert_use(trunk, lambda: trunk(x, torch.zeros(2, 1, 1, 19)))
    assert [use.block for use in uses] == ["blocks.0.mlp", "blocks.1.mlp"]
    assert torch.equal(trunk(x), before)
    assert not any(module._forward_pre_hooks for module in trunk.modules())
    assert expert_text(uses).startswith("experts of 2 blocks: each takes 25.0% to 25.0%")


def test_a_student_without_experts_uses_none():
    dense = nn.Linear(2, 2)
    assert expert_use(dense, lambda: dense(torch.ones(1, 2))) == ()
