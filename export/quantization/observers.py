"""What stands at each operand that may become int8: it watches, plays int8, or does neither.

torchao's PT2E puts one of these modules on every annotated edge of the traced student. Because it
can play int8 in float (quantise, dequantise), every question about scores is asked of the one
traced student: of one layer alone, of all, with this method or that, without exporting anything.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from distill.quantization import int8
from export.onnx_graph import quiet
from export.quantization.ranges import LEVELS, Histogram, Method, range_of

with quiet():  # torchao announces each CUDA extension that a CPU machine lacks
    from torchao.quantization.pt2e import ObserverBase
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

State = Literal["float", "watch", "int8"]
FINEST_SCALE = int8.FINEST_SCALE


class _Operand(ObserverBase):  # type: ignore[misc] # torchao is untyped
    """One operand of one layer, or of several that read the same tensor."""

    qscheme = torch.per_tensor_symmetric
    # Symmetric, so that zero points are 0, as TensorRT requires; -128 is left out, so that the
    # range is as wide below 0 as above.
    quant_min, quant_max = -LEVELS, LEVELS

    def __init__(self, **_spec: Any) -> None:
        super().__init__(dtype=torch.int8)
        self.state: State = "float"


class Activation(_Operand):
    """A computed operand: one scale for the tensor, from the histogram of what came by."""

    def __init__(self, **spec: Any) -> None:
        super().__init__(**spec)
        self.histogram = Histogram()
        self.channels_C: Tensor | None = None  # largest magnitude of each entry of the last axis
        self.scale = FINEST_SCALE

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, or what int8 makes of it."""
        if self.state == "int8":
            return torch.fake_quantize_per_tensor_affine(x, self.scale, 0, -LEVELS, LEVELS)
        if self.state == "watch":
            self.histogram.add(x)
            largest_C = x.detach().abs().flatten(0, -2).amax(0)
            kept_C = self.channels_C
            self.channels_C = largest_C if kept_C is None else torch.maximum(kept_C, largest_C)
        return x

    def forget(self) -> None:
        """Start anew, as before the first sample."""
        self.histogram = Histogram()
        self.channels_C = None

    def settle(self, method: Method) -> None:
        """Take the scale that `method` reads from the histogram."""
        self.scale = max(range_of(self.histogram, method) / LEVELS, FINEST_SCALE)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, for torchao's conversion."""
        return torch.tensor([self.scale]), torch.zeros(1, dtype=torch.int64)


class PerChannelWeight(_Operand):
    """A weight: one scale for each output channel, its largest magnitude (torchao reads the name).

    Weights are there in full, so nothing is to be watched.
    """

    qscheme = torch.per_channel_symmetric

    def __init__(self, *, ch_axis: int, **spec: Any) -> None:
        super().__init__(**spec)
        self.ch_axis = ch_axis
        self.scales_C: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, or what int8 makes of it."""
        if self.state != "int8":
            return weight
        scales_C = self.scales_of(weight)
        zeros_C = torch.zeros(len(scales_C), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight, scales_C, zeros_C, self.ch_axis, -LEVELS, LEVELS
        )

    def scales_of(self, weight: Tensor) -> Tensor:
        """Return the scales [C] of `weight`, computed once."""
        if self.scales_C is None:
            self.scales_C = int8.weight_scales(weight, self.ch_axis)
        return self.scales_C

    def forget(self) -> None:
        """Look at the weight again: it was scaled."""
        self.scales_C = None

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scales and zero points, for torchao's conversion."""
        assert self.scales_C is not None, "the weight was never looked at"
        return self.scales_C, torch.zeros(len(self.scales_C), dtype=torch.int64)


def activation() -> QuantizationSpec:
    """Say that an operand is computed: int8 per tensor."""
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-LEVELS,
        quant_max=LEVELS,
        qscheme=torch.per_tensor_symmetric,
        observer_or_fake_quant_ctr=Activation,
    )


def weight(axis: int) -> QuantizationSpec:
    """Say that an operand is a weight: int8 with a scale for each entry of `axis`."""
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-LEVELS,
        quant_max=LEVELS,
        qscheme=torch.per_channel_symmetric,
        ch_axis=axis,
        observer_or_fake_quant_ctr=PerChannelWeight,
    )
