"""INT8's arithmetic in float: what export writes into the graph, as training plays it.

Symmetric, zero points 0, from -127 to 127: weights with a scale for each output channel, what a
layer reads with one for the whole tensor. Rounding has no gradient, so it is passed through as if
nothing had been rounded (Bengio et al., arXiv 1308.3432; in training for integer arithmetic, Jacob
et al., arXiv 1712.05877).

Shapes: C output channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distill.students.float32 import in_float32

LEVELS = 127  # of magnitude above 0: symmetric int8 without -128
FINEST_SCALE = 2.0**-20  # above 0 also where all was 0; in FP16 a subnormal that keeps 4 bits


def weight_scales(weight: Tensor, axis: int) -> Tensor:
    """Return a weight's scales [C]: each output channel's largest magnitude becomes 127."""
    others = [other for other in range(weight.ndim) if other != axis]
    whole = weight.detach()
    largest_C = torch.maximum(whole.amax(others), -whole.amin(others))  # without a copy of it
    return (largest_C / LEVELS).clamp_min(FINEST_SCALE)


def weight_in_int8(weight: Tensor, axis: int) -> Tensor:
    """Return what int8 makes of a weight; nothing is clipped, so its whole gradient passes."""
    scales_C = weight_scales(weight, axis)
    zeros_C = torch.zeros(len(scales_C), dtype=torch.int32, device=weight.device)
    rounded: Tensor = torch.fake_quantize_per_channel_affine(
        weight, scales_C, zeros_C, axis, -LEVELS, LEVELS
    )
    return rounded


class InputRange(nn.Module):
    """What several layers read, or one, in int8 of a range that may learn.

    The range learns by the gradient of "Learned Step Size Quantization" (Esser et al., arXiv
    1902.08153, eq. 3, and the gradient's scale of section 2.2). What is stored is its logarithm, so
    that Adam's steps, which are as large whatever the gradient is, move every range by the same
    share of itself (Jain et al., arXiv 1903.08066, section 3.3).
    """

    def __init__(self, covered: float, *, learns: bool) -> None:
        super().__init__()
        start = math.log(max(covered, LEVELS * FINEST_SCALE))
        # One entry and not a scalar: what shards a student over GPUs takes no scalars.
        self.log_range = nn.Parameter(torch.tensor([start]), requires_grad=learns)

    @property
    def covered(self) -> float:
        """The magnitude that becomes 127; what lies above it is clipped."""
        return float(torch.exp(self.log_range.detach()))

    def forward(self, x: Tensor) -> Tensor:
        """Return what int8 makes of `x`."""
        with in_float32(x):
            share = 1.0 / math.sqrt(x.numel() * LEVELS)
            log_range = self.log_range * share + (self.log_range * (1.0 - share)).detach()
            step = torch.exp(log_range) / LEVELS
            clipped = (x.float() / step).clamp(-LEVELS, LEVELS)
            codes = clipped + (clipped.round() - clipped).detach()
            return (codes * step).to(x.dtype)
