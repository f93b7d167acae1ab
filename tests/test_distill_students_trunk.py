import pytest
import torch

from distill.students.trunk import (
    MASKED,
    Attention,
    BlockShape,
    Experts,
    Layout,
    Mlp,
    Trunk,
    is_global,
    layout_for,
    tokens_per_expert,
)

SHAPE = BlockShape(width=32, heads=4, hidden=64)


def tokens(count: int, width: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(count))


def trunk_of(layout: Layout, *, depth: int = 3, every: int = 3, shape: BlockShape = SHAPE) -> Trunk:
    torch.manual_seed(0)
    return Trunk(depth, shape, layout, global_every=every).eval()


@pytest.mark.parametrize(
    ("grid", "most", "window"),
    [
        ((16, 16), 256, (16, 16)),
        ((64, 64), 256, (16, 16)),
        ((40, 56), 256, (8, 28)),
        ((32, 32), 0, (32, 32)),
        ((0, 0), 256, (0, 0)),
    ],
)
def test_a_grid_is_cut_into_equal_windows(grid, most, window):
    layout = layout_for(3, grid, most)
    assert (layout.window_rows, layout.window_columns) == window


def test_windows_come_back_as_rows():
    layout = Layout(0, 4, 6, 2, 3)
    cells = torch.arange(24.0).reshape(1, 24, 1)
    windows = layout.to_windows(cells)
    assert windows[0, :6, 0].tolist() == [0, 1, 2, 6, 7, 8]
    assert torch.equal(layout.to_rows(windows), cells)


def test_a_windowed_block_lets_no_cell_see_another_window_but_through_the_prefix():
    layout = layout_for(1, (4, 4), 4)
    trunk = trunk_of(layout, depth=2, every=2)
    windowed = trunk.blocks[0]
    assert windowed.attention.windowed
    assert not trunk.blocks[1].attention.windowed
    x = tokens(17)
    changed = x.clone()
    changed[:, 1] += 1.0  # a cell of the first window, window after window
    before, after = windowed(x), windowed(changed)
    same = (before == after).all(-1)[0]
    assert not same[0]  # the prefix sees everything
    assert not same[1:5].all()
    assert same[5:].all()


def test_one_window_is_the_same_as_none():
    x = tokens(1 + 16)
    whole = trunk_of(layout_for(1, (4, 4), 0))
    windowed = trunk_of(layout_for(1, (4, 4), 16))
    torch.testing.assert_close(whole(x), windowed(x))


@pytest.mark.parametrize("gated", [False, True])
def test_an_absent_key_is_not_felt_in_any_block(gated: bool):
    layout = layout_for(3, (4, 4), 4)
    trunk = trunk_of(layout, shape=BlockShape(32, 4, 64, gated=gated))
    bias = torch.zeros(2, 1, 1, 19)
    bias[..., 2] = MASKED
    x = tokens(19)
    other = x.clone()
    other[:, 2] += 5.0
    kept = [0, 1, *range(3, 19)]
    torch.testing.assert_close(trunk(x, bias)[:, kept], trunk(other, bias)[:, kept])


def test_the_gate_lets_in_what_lies_outside_the_window():
    layout = layout_for(1, (4, 4), 4)
    torch.manual_seed(0)
    attention = Attention(32, 4, layout, windowed=True, gated=True).eval()
    x = tokens(17)
    changed = x.clone()
    changed[:, 1] += 1.0
    assert not torch.equal(attention(x, None)[:, 9:], attention(changed, None)[:, 9:])


def test_every_expert_takes_its_fixed_share():
    torch.manual_seed(0)
    experts = Experts(32, 64, 8)
    weight, chosen = experts.choose(tokens(40))
    assert tokens_per_expert(40, 8) == 10
    assert weight.shape == (2, 8, 10)
    assert torch.equal(chosen.sum(-1), torch.ones(2, 8, 10))
    assert chosen.amax((1, 2)).max() == 1  # nobody takes a token twice into one place
    assert chosen.sum((1, 2, 3)).tolist() == [80, 80]  # every token meets two, on average


def test_experts_that_are_alike_give_what_the_dense_mlp_gives():
    torch.manual_seed(0)
    dense, experts = Mlp(32, 64), Experts(32, 64, 8)
    with torch.no_grad():
        experts.up_EDU.copy_(dense.up.weight.T.expand_as(experts.up_EDU))
        experts.up_bias_E1U.copy_(dense.up.bias.expand_as(experts.up_bias_E1U))
        experts.down_EUD.copy_(dense.down.weight.T.expand_as(experts.down_EUD))
        experts.down_bias_E1D.copy_(dense.down.bias.expand_as(experts.down_bias_E1D))
    x = tokens(40)
    _, chosen = experts.choose(x)
    taken = chosen.sum((1, 2)) > 0  # by one expert or more; the others pass by the residual
    assert taken.any()
    assert not taken.all()
    torch.testing.assert_close(experts(x), dense(x) * taken[..., None])


def test_an_absent_token_takes_no_place_from_one_that_is_there():
    torch.manual_seed(0)
    experts = Experts(32, 64, 4)
    bias = torch.zeros(2, 1, 1, 16)
    bias[..., :8] = MASKED
    _, chosen = experts.choose(tokens(16), bias)
    assert chosen[..., :8].sum() == 0  # each expert takes 8, and 8 are there
    assert chosen[..., 8:].sum() == 2 * 4 * 8


def test_the_last_block_always_sees_everything():
    assert [is_global(n, 5, 3) for n in range(5)] == [False, False, True, False, True]
    assert all(is_global(n, 4, 1) for n in range(4))
