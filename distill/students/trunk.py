"""The transformer inside the student: blocks over prefix tokens and image tokens together.

The prefix (summaries and sensor tokens) is short and always meets every token. Image tokens meet
the prefix and, in a windowed block, only the cells of their own window, so that the cost of such a
block grows linearly with the image; a few global blocks join the windows. The image tokens stand
window after window (`to_windows`), so that a window is a reshape and never a gather.

Everything here is static in shape and made of products, softmax and LayerNorm: what ONNX and
TensorRT take and fuse. TensorRT refuses a scatter with a reduction, so tokens travel to experts
and back by products with a one-hot matrix.

Shapes: B batch, N tokens, P prefix tokens, G image tokens (W windows of T), D width, M heads,
Q width per head, E experts, K tokens per expert, U width of the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)
from torch.utils.checkpoint import checkpoint

EXPERTS_PER_TOKEN = 2  # on average: each expert takes this share of the tokens over all experts
_LEAST_WEIGHT = 1e-4  # of all experts together; a token that none took keeps 0
MASKED = -1e4  # added to the logits of absent keys: exp() of it is 0 in FP16 as in FP32


@dataclass(frozen=True)
class Layout:
    """How the tokens of one sequence stand: the prefix, then the image window by window."""

    prefix: int
    rows: int  # of the image's grid
    columns: int
    window_rows: int  # of one window; the whole grid where there is only one
    window_columns: int

    @property
    def windows(self) -> int:
        """How many windows the grid is cut into; 1 where there is no image."""
        if not self.cells:
            return 1
        return (self.rows // self.window_rows) * (self.columns // self.window_columns)

    @property
    def cells(self) -> int:
        """Image tokens in all."""
        return self.rows * self.columns

    def to_windows(self, x_BGD: Tensor) -> Tensor:
        """Put image tokens from row after row into window after window."""
        down, across = self.rows // self.window_rows, self.columns // self.window_columns
        x = torch.unflatten(x_BGD, 1, (down, self.window_rows, across, self.window_columns))
        return x.transpose(2, 3).flatten(1, 4)

    def to_rows(self, x_BGD: Tensor) -> Tensor:
        """Undo `to_windows`."""
        down, across = self.rows // self.window_rows, self.columns // self.window_columns
        x = torch.unflatten(x_BGD, 1, (down, across, self.window_rows, self.window_columns))
        return x.transpose(2, 3).flatten(1, 4)


def layout_for(prefix: int, grid: tuple[int, int], window_tokens: int) -> Layout:
    """Cut the grid into equal windows of at most `window_tokens` cells, as square as they come.

    0 means no windows. A grid that fits one window is one window.
    """
    rows, columns = grid
    if window_tokens == 0 or rows * columns <= window_tokens:
        return Layout(prefix, rows, columns, rows, columns)
    fitting = [
        (height, width)
        for height in _divisors(rows)
        for width in _divisors(columns)
        if height * width <= window_tokens
    ]
    # Large before square: a window of 2 x 13 sees less than one of 12 x 13.
    height, width = max(fitting, key=lambda hw: hw[0] * hw[1] - abs(hw[0] - hw[1]))
    return Layout(prefix, rows, columns, height, width)


class Attention(nn.Module):
    """Multi-head attention over prefix and image, whole or within windows.

    q, k and v are Linears of their own, whose outputs are joined before the heads part them: so
    NVIDIA's builder makes of them one gemm, also in INT8, and one kernel for all that follows up to
    the attention. (Parted one by one they took two kernels more.)
    """

    def __init__(self, width: int, heads: int, layout: Layout, *, windowed: bool, gated: bool):
        super().__init__()
        self.heads = heads
        self.layout = layout
        self.windowed = windowed and layout.windows > 1
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        # The logit of the share that what lies outside the window gets; 5 % to begin with.
        self.gate = (
            nn.Parameter(torch.full((heads, 1, 1), -3.0)) if gated and self.windowed else None
        )

    def forward(self, x_BND: Tensor, bias_B11N: Tensor | None) -> Tensor:
        """Return mixed tokens; `bias_B11N` is 0, or `MASKED` where a key is absent."""
        joint_BND = torch.cat([part(x_BND) for part in (self.query, self.key, self.value)], 2)
        q, k, v = self._split(joint_BND).chunk(3, 1)
        if not self.windowed:
            return self._join(_attend(q, k, v, bias_B11N))
        prefix = self.layout.prefix
        of_prefix = _attend(q[:, :, :prefix], k, v, bias_B11N)
        local = self._in_windows(q, k, v, bias_B11N)
        if self.gate is not None:
            share = torch.sigmoid(self.gate)
            local = (1.0 - share) * local + share * self._between_windows(q, k, v)
        return self._join(torch.cat([of_prefix, local], 2))

    def _in_windows(self, q: Tensor, k: Tensor, v: Tensor, bias_B11N: Tensor | None) -> Tensor:
        """Each image token meets the prefix and its own window; returns [B, M, G, Q]."""
        prefix, windows = self.layout.prefix, self.layout.windows
        shape = (windows, self.layout.cells // windows)

        def with_prefix(x_BMNQ: Tensor) -> Tensor:
            image = torch.unflatten(x_BMNQ[:, :, prefix:], 2, shape)
            before = x_BMNQ[:, :, None, :prefix].expand(-1, -1, windows, -1, -1)
            return torch.cat([before, image], 3)

        bias = None
        if bias_B11N is not None:
            # The image is absent as a whole or not at all: one window's bias is every window's.
            bias = bias_B11N[:, :, None, :, : prefix + shape[1]]
        q_image = torch.unflatten(q[:, :, prefix:], 2, shape)
        return _attend(q_image, with_prefix(k), with_prefix(v), bias).flatten(2, 3)

    def _between_windows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each image token meets the mean of every window; returns [B, M, G, Q]."""
        prefix, windows = self.layout.prefix, self.layout.windows
        shape = (windows, self.layout.cells // windows)
        k_means, v_means = (torch.unflatten(x[:, :, prefix:], 2, shape).mean(3) for x in (k, v))
        return _attend(q[:, :, prefix:], k_means, v_means, None)

    def _split(self, joint_BND: Tensor) -> Tensor:
        """Return [B, 3 M, N, Q]: the heads of the queries, of the keys, of the values."""
        return torch.unflatten(joint_BND, 2, (3 * self.heads, -1)).transpose(1, 2)

    def _join(self, x_BMNQ: Tensor) -> Tensor:
        joined: Tensor = self.project(x_BMNQ.transpose(1, 2).flatten(2))
        return joined


class Mlp(nn.Module):
    """Two Linears with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor, _bias: Tensor | None = None) -> Tensor:
        """Return tokens of the same shape."""
        out_BND: Tensor = self.down(F.gelu(self.up(x_BND)))
        return out_BND


class Experts(nn.Module):
    """A mixture of MLPs, in which experts choose tokens (Zhou et al., arXiv 2202.09368).

    Each expert takes the same, fixed number of tokens, those that it scores highest, so that all
    are used alike and every shape is static. A token that no expert takes passes unchanged, by
    the residual around this.
    """

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.router = nn.Linear(width, experts, bias=False)
        self.up_EDU = nn.Parameter(torch.empty(experts, width, hidden))
        self.up_bias_E1U = nn.Parameter(torch.zeros(experts, 1, hidden))
        self.down_EUD = nn.Parameter(torch.empty(experts, hidden, width))
        self.down_bias_E1D = nn.Parameter(torch.zeros(experts, 1, width))
        for weight in (self.up_EDU, self.down_EUD):
            bound = 1.0 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x_BND: Tensor, bias_B11N: Tensor | None = None) -> Tensor:
        """Return tokens of the same shape; what `bias_B11N` masks is chosen last and weighs 0."""
        weight_BEK, chosen_BEKN = self.choose(x_BND, bias_B11N)
        x_BEKD = chosen_BEKN @ x_BND[:, None]
        x_EBKD = x_BEKD.transpose(0, 1)
        x_ERD = x_EBKD.flatten(1, 2)
        hidden_ERU = F.gelu(self.product(x_ERD, "up_EDU") + self.up_bias_E1U)
        out_ERD = self.product(hidden_ERU, "down_EUD") + self.down_bias_E1D
        out_BEKD = torch.unflatten(out_ERD, 1, x_EBKD.shape[1:3]).transpose(0, 1)
        # Each token's weights are made to sum to 1, so that experts that start as copies of one
        # dense MLP give what it gave (Komatsuzaki et al., arXiv 2212.05055).
        chosen_BNR = chosen_BEKN.flatten(1, 2).transpose(1, 2)
        weight_BR1 = weight_BEK.flatten(1)[..., None]
        total_BN1 = chosen_BNR @ weight_BR1
        mixed_BND = chosen_BNR @ (out_BEKD.flatten(1, 2) * weight_BR1)
        return mixed_BND / total_BN1.clamp_min(_LEAST_WEIGHT)

    def product(self, x_ERI: Tensor, weight: str) -> Tensor:
        """Return each expert's rows times its matrix of the weight called so."""
        weight_EIO: Tensor = getattr(self, weight)
        return x_ERI @ weight_EIO

    def choose(self, x_BND: Tensor, bias_B11N: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the weights [B, E, K] and the one-hot choice [B, E, K, N] of each expert."""
        tokens = x_BND.shape[1]
        share_BNE = torch.softmax(self.router(x_BND), -1)
        if bias_B11N is not None:
            # An absent token must not take a place from one that is there.
            share_BNE = share_BNE * (1.0 - bias_B11N[:, 0, 0, :, None] / MASKED)
        taken = tokens_per_expert(tokens, self.experts)
        weight_BEK, index_BEK = share_BNE.transpose(1, 2).topk(taken, -1)
        places_N = torch.arange(tokens, device=x_BND.device)
        return weight_BEK, (index_BEK[..., None] == places_N).to(x_BND.dtype)


@dataclass(frozen=True)
class BlockShape:
    """What all blocks of one trunk share."""

    width: int
    heads: int
    hidden: int  # width of the MLP
    experts: int = 0  # 0: one dense MLP
    gated: bool = False
    dropout: float = 0.0
    recompute: bool = False  # while training: keep a block's input alone, and compute it again


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        shape: BlockShape,
        layout: Layout,
        *,
        windowed: bool,
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(shape.width)
        self.attention = Attention(
            shape.width, shape.heads, layout, windowed=windowed, gated=shape.gated
        )
        self.norm_mlp = nn.LayerNorm(shape.width)
        self.mlp: nn.Module = (
            Experts(shape.width, shape.hidden, shape.experts)
            if shape.experts
            else Mlp(shape.width, shape.hidden)
        )
        self.dropout = nn.Dropout(shape.dropout)
        self.recompute = shape.recompute

    def forward(self, x_BND: Tensor, bias_B11N: Tensor | None = None) -> Tensor:
        """Return tokens of the same shape."""
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return self._mixed(x_BND, bias_B11N)
        # The second pass draws the same random numbers, so dropout drops the same.
        mixed_BND: Tensor = checkpoint(self._mixed, x_BND, bias_B11N, use_reentrant=False)
        return mixed_BND

    def _mixed(self, x_BND: Tensor, bias_B11N: Tensor | None) -> Tensor:
        x_BND = x_BND + self.dropout(self.attention(self.norm_attention(x_BND), bias_B11N))
        mixed_BND: Tensor = x_BND + self.dropout(self.mlp(self.norm_mlp(x_BND), bias_B11N))
        return mixed_BND


class Trunk(nn.Module):
    """The blocks, one after another; every `global_every`-th and the last meet all tokens."""

    def __init__(self, depth: int, shape: BlockShape, layout: Layout, *, global_every: int) -> None:
        super().__init__()
        self.layout = layout
        self.blocks = nn.ModuleList(
            Block(shape, layout, windowed=not is_global(number, depth, global_every))
            for number in range(depth)
        )

    def forward(self, x_BND: Tensor, bias_B11N: Tensor | None = None) -> Tensor:
        """Return [B, N, D]: the prefix, then the image row after row, as they came."""
        if self.layout.windows > 1:
            x_BND = self._reordered(x_BND, self.layout.to_windows)
        for block in self.blocks:
            x_BND = block(x_BND, bias_B11N)
        if self.layout.windows > 1:
            x_BND = self._reordered(x_BND, self.layout.to_rows)
        return x_BND

    def _reordered(self, x_BND: Tensor, order: Callable[[Tensor], Tensor]) -> Tensor:
        prefix = self.layout.prefix
        return torch.cat([x_BND[:, :prefix], order(x_BND[:, prefix:])], 1)


def is_global(number: int, depth: int, global_every: int) -> bool:
    """Tell whether block `number` (from 0) of `depth` meets all tokens."""
    return global_every <= 1 or (number + 1) % global_every == 0 or number == depth - 1


def tokens_per_expert(tokens: int, experts: int) -> int:
    """How many tokens each expert takes: on average, every token meets `EXPERTS_PER_TOKEN`."""
    return max(1, tokens * EXPERTS_PER_TOKEN // experts)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention over the last two dimensions, written out as TensorRT fuses it."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    return torch.softmax(logits, -1) @ v


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
