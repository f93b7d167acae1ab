"""The package's own backbone, which is there without a download.

Shapes: B batch, H W pixels, N = h * w cells of the student's grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.features.efficientnet_lite import PIXEL_MEAN, PIXEL_SCALE, imagenet_trunk
from distill.teachers.backbone import Grid, Seen, bring_to, on_grid, the_device

LITE2 = "efficientnet_lite2"


class LiteBackbone:
    """EfficientNet-Lite2 with ImageNet weights: the levels at stride 8 and 16."""

    name = LITE2
    digest = "efficientnet-lite2-9656183e, strides 8 and 16, summary by mean"

    def __init__(self) -> None:
        self._device = the_device()
        self._trunk = imagenet_trunk(2)  # to the device when it first looks

    @torch.inference_mode()
    def __call__(self, image_BHW3: Tensor, grid: Grid) -> Seen:
        """Return [B, N, 168] and their mean [B, 168]."""
        bring_to(self._device, self._trunk)
        image_B3HW = image_BHW3.to(self._device).permute(0, 3, 1, 2)
        levels = self._trunk((image_B3HW.float() - PIXEL_MEAN) / PIXEL_SCALE)
        dense_BND = on_grid(levels, grid).cpu()
        return Seen(dense_BND, dense_BND.mean(1))
