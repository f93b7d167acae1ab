"""Vision models of the Hugging Face format as backbones, on the student's grid.

The image is resized so that one patch falls on each cell of the grid, positions are interpolated by
the model itself, and class and register tokens are left out of the dense features. What stands for
the whole image is what the family was trained to read: the class token (ViT, ViT-MAE, DINOv2,
DINOv3), CLIP's normed class token, SigLIP's attention pooling, RADIO's summary tokens, a
convolutional network's pooled features; the mean of the cells where there is none of these.

Shapes: B batch, H W pixels, N = h * w cells, P patch pixels, D dense features, S summary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from distill.teachers.backbone import Grid, Seen, bring_to, on_grid, the_device
from distill.teachers.model_folder import Opened, open_model
from edge.errors import InputError, MachineError

_NO_CLASS_TOKEN = ("siglip_vision_model", "siglip2_vision_model", "ijepa")
_POOLED = ("clip_vision_model", "metaclip_2_vision_model", "siglip_vision_model",
           "siglip2_vision_model")  # fmt: skip
_STRIDE = 16  # pixels per cell that a network without patches is shown
_FINEST = 2  # levels of up to twice the grid each way are taken, coarser ones than it are not


class HuggingFaceBackbone:
    """Any vision transformer or convolutional network whose tokens fit the grid."""

    def __init__(self, name: str) -> None:
        """Open the model; raises InputError as `open_model` does."""
        opened = open_model(name)
        self.name = name
        self.digest = opened.digest
        self._device = the_device()
        self._model = opened.model  # to the device when it first looks: some ask its digest only
        self._config = opened.config
        self._patch = _patch_of(opened)
        self._mean = opened.mean_3.view(1, 3, 1, 1)
        self._deviation = opened.deviation_3.view(1, 3, 1, 1)
        self._look = self._way_of_looking()
        self._refuse_oblong_positions()

    @torch.inference_mode()
    def __call__(self, image_BHW3: Tensor, grid: Grid) -> Seen:
        """Return [B, N, D] and [B, S] of uint8 images. Raises InputError for an unfit grid."""
        size = (grid[0] * self._patch[0], grid[1] * self._patch[1])
        bring_to(self._device, self._model)
        try:
            dense_BND, summary_BS = self._look(self._shown(image_BHW3, size), grid)
        except (RuntimeError, ValueError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise self._too_large(len(image_BHW3), size, error) from error
            raise self._unfit(grid, f"{type(error).__name__}: {error}") from error
        if dense_BND.shape[1] != grid[0] * grid[1]:
            raise self._unfit(grid, f"{dense_BND.shape[1]} patches")
        if not (dense_BND.isfinite().all() and summary_BS.isfinite().all()):
            raise self._not_finite()
        return Seen(dense_BND.float().cpu(), summary_BS.float().cpu())

    def _shown(self, image_BHW3: Tensor, size: tuple[int, int]) -> Tensor:
        """Return standardised pixels [B, 3, H, W] of that height and width."""
        pixels_B3HW = image_BHW3.permute(0, 3, 1, 2).float() / 255.0
        if pixels_B3HW.shape[2:] != size:
            pixels_B3HW = F.interpolate(
                pixels_B3HW, size, mode="bilinear", antialias=True, align_corners=False
            )
        return ((pixels_B3HW - self._mean) / self._deviation).to(self._device)

    def _way_of_looking(self) -> Callable[[Tensor, Grid], tuple[Tensor, Tensor]]:
        kind = self._config.model_type
        if kind == "radio":
            return self._radio
        if kind == "siglip2_vision_model":
            return self._native_aspect
        return self._tokens if _is_transformer(self._config) else self._levels

    def _tokens(self, pixels_B3HW: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Look through a vision transformer: class and register tokens first, then patches."""
        options: dict[str, Any] = {}
        takes = inspect.signature(self._model.forward).parameters
        if "interpolate_pos_encoding" in takes:
            options["interpolate_pos_encoding"] = True
        if self._config.model_type == "vit_mae":
            # Patches stay in their order where the noise that shuffles them only rises.
            cells = grid[0] * grid[1]
            rising_N = torch.arange(cells, device=self._device) / cells
            options["noise"] = rising_N.expand(len(pixels_B3HW), -1)
        output = self._model(pixel_values=pixels_B3HW, **options)
        return self._split(output)

    def _native_aspect(self, pixels_B3HW: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Look through SigLIP 2's NaFlex variant, which takes patches and the grid they are of."""
        (rows, columns), (high, wide) = grid, self._patch
        patches_B3hPwP = pixels_B3HW.reshape(-1, 3, rows, high, columns, wide)
        # Patches row by row, and in each the pixels row by row with their colours last.
        patches_BNP = patches_B3hPwP.permute(0, 2, 4, 3, 5, 1).reshape(
            len(pixels_B3HW), rows * columns, -1
        )
        batch, cells, _ = patches_BNP.shape
        output = self._model(
            pixel_values=patches_BNP,
            pixel_attention_mask=torch.ones(batch, cells, dtype=torch.int64, device=self._device),
            spatial_shapes=torch.tensor([grid] * batch, device=self._device),
        )
        return self._split(output)

    def _radio(self, pixels_B3HW: Tensor, _grid: Grid) -> tuple[Tensor, Tensor]:
        """Look through C-RADIO, which standardises pixels and drops its own tokens itself."""
        output = self._model(pixel_values=pixels_B3HW)
        return output.features, output.summary

    def _levels(self, pixels_B3HW: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Look through a convolutional network: its levels at stride 8 and 16."""
        output = self._model(pixel_values=pixels_B3HW, output_hidden_states=True)
        states = [state for state in output.hidden_states if state.dim() == pixels_B3HW.dim()]
        by_size = {state.shape[2:]: state for state in states}  # the last one of each size
        fitting = tuple(
            state
            for (high, wide), state in by_size.items()
            if 1 <= high / grid[0] <= _FINEST and 1 <= wide / grid[1] <= _FINEST
        )
        if not fitting:
            raise ValueError("no level of stride 8 or 16")
        return on_grid(fitting, grid), output.pooler_output.flatten(1)

    def _split(self, output: Any) -> tuple[Tensor, Tensor]:
        states_BND: Tensor = output.last_hidden_state
        prefix = self._prefix_tokens()
        dense_BND = states_BND[:, prefix:]
        if self._config.model_type in _POOLED and output.pooler_output is not None:
            return dense_BND, output.pooler_output
        return dense_BND, states_BND[:, 0] if prefix else dense_BND.mean(1)

    def _prefix_tokens(self) -> int:
        classes = 0 if self._config.model_type in _NO_CLASS_TOKEN else 1
        return classes + int(getattr(self._config, "num_register_tokens", 0) or 0)

    def _refuse_oblong_positions(self) -> None:
        """Refuse positions that were not learned on a square: transformers takes them for one."""
        size = getattr(self._config, "image_size", None)
        learned = any("position_embedding" in name for name, _ in self._model.named_parameters())
        if learned and isinstance(size, list | tuple) and len(set(size)) > 1:
            raise InputError(
                where=self.name,
                expected="positions learned on a square of patches, which can be interpolated",
                found=f"image_size {list(size)}",
                do="Use a model for square images; it is shown other shapes all the same.",
            )

    def _too_large(self, images: int, size: tuple[int, int], error: Exception) -> MachineError:
        return MachineError(
            where=self.name,
            expected=f"memory on {self._device} to look at {images} images of "
            f"{size[0]} x {size[1]} pixels",
            found=str(error).splitlines()[0],
            do="Use a smaller backbone or image.pixel_budget, or a machine with more memory.",
        )

    def _not_finite(self) -> InputError:
        return InputError(
            where=self.name,
            expected="numbers as features",
            found="some that are not finite",
            do="The weights are damaged: download the model again.",
        )

    def _unfit(self, grid: Grid, found: str) -> InputError:
        return InputError(
            where=self.name,
            expected=f"one patch for each of {grid[0]} x {grid[1]} cells, besides "
            f"{self._prefix_tokens()} class and register tokens",
            found=found.splitlines()[0],
            do="This model's patches cannot be laid on the student's grid; use another backbone.",
        )


def _patch_of(opened: Opened) -> tuple[int, int]:
    """Return the height and width in pixels of what is shown for a cell."""
    patch = opened.config.patch_size if _is_transformer(opened.config) else _STRIDE
    high, wide = patch if isinstance(patch, list | tuple) else (patch, patch)
    return int(high), int(wide)


def _is_transformer(config: Any) -> bool:
    return hasattr(config, "num_attention_heads") and hasattr(config, "patch_size")
