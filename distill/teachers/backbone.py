"""What the teacher looks through: a frozen network that gives dense features of an image.

Shapes: B batch, H W pixels, h w the student's grid, N = h * w cells, D features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from distill.features.efficientnet_lite import PIXEL_MEAN, PIXEL_SCALE, imagenet_trunk
from edge.artefact import digest_of_bytes, digest_of_file
from edge.errors import InputError, MachineError

LITE2 = "efficientnet_lite2"
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
_SEVERAL_TOKENS = 3  # dimensions of [B, tokens, D]; a convolutional backbone gives 4


class Backbone(Protocol):
    """A frozen network; `digest` names its weights."""

    digest: str

    def __call__(self, image_BHW3: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return float features [B, N, D], one per cell of `grid`, of uint8 images."""
        ...


def backbone_named(name: str) -> Backbone:
    """Load the package's own backbone or a Hugging Face one from its folder. InputError."""
    if name == LITE2:
        return LiteBackbone()
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise InputError(
            where="teacher.backbone",
            expected=f"'{LITE2}', or the folder of a Hugging Face vision model (with config.json)",
            found=f"'{name}'",
            do="Check the path; download a model once with `hf download`, nothing is fetched here.",
        )
    return HuggingFaceBackbone(folder)


class LiteBackbone:
    """EfficientNet-Lite2 with ImageNet weights: the levels at stride 8 and 16."""

    digest = "efficientnet-lite2-9656183e, strides 8 and 16"

    def __init__(self) -> None:
        self._trunk = imagenet_trunk(2)

    @torch.inference_mode()
    def __call__(self, image_BHW3: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return [B, N, 168]."""
        pixels = (image_BHW3.permute(0, 3, 1, 2).float() - PIXEL_MEAN) / PIXEL_SCALE
        fine, coarse = self._trunk(pixels)
        levels = [F.adaptive_avg_pool2d(fine, grid), F.adaptive_avg_pool2d(coarse, grid)]
        return torch.cat(levels, 1).flatten(2).transpose(1, 2)


class HuggingFaceBackbone:
    """Any vision model that transformers' AutoModel opens: ViT, DINOv2, ConvNeXt, ResNet ..."""

    def __init__(self, folder: Path) -> None:
        try:
            from transformers import AutoModel  # noqa: PLC0415 (seconds to import, rarely wanted)
        except ImportError:
            raise MachineError(
                where="teacher.backbone",
                expected="the package transformers",
                found="no such package",
                do="Install the training side: pip install 'orin-inspect[host]'.",
            ) from None
        try:
            self._model: nn.Module = AutoModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(
                where=folder,
                expected="a Hugging Face vision model that AutoModel opens",
                found=str(error).splitlines()[0],
                do="Check that config.json and the weights are whole.",
            ) from None
        self._model.eval().requires_grad_(False)
        self._patch = int(getattr(self._model.config, "patch_size", None) or 16)
        self._mean, self._deviation = _pixel_statistics(folder)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        self.digest = digest_of_bytes("".join(map(digest_of_file, files)).encode())

    @torch.inference_mode()
    def __call__(self, image_BHW3: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return [B, N, D]. The image is resized so that one patch falls on each cell."""
        pixels = image_BHW3.permute(0, 3, 1, 2).float() / 255.0
        size = (grid[0] * self._patch, grid[1] * self._patch)
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        states = self._states((pixels - self._mean) / self._deviation)
        if states.dim() == _SEVERAL_TOKENS:
            # Class and register tokens come first; the patch tokens are the last ones.
            return states[:, states.shape[1] - grid[0] * grid[1] :]
        return F.adaptive_avg_pool2d(states, grid).flatten(2).transpose(1, 2)

    def _states(self, pixels_B3HW: Tensor) -> Tensor:
        try:
            output: Any = self._model(pixel_values=pixels_B3HW, interpolate_pos_encoding=True)
        except TypeError:  # models whose positions fit any size do not take the option
            output = self._model(pixel_values=pixels_B3HW)
        states: Tensor = output.last_hidden_state
        return states


def _pixel_statistics(folder: Path) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [1, 3, 1, 1] of the model's own preprocessing, else ImageNet's."""
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    mean = torch.tensor(settings.get("image_mean", _IMAGENET_MEAN))
    deviation = torch.tensor(settings.get("image_std", _IMAGENET_DEVIATION))
    return mean.view(1, 3, 1, 1), deviation.view(1, 3, 1, 1)
