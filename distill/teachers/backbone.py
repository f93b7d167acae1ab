"""What a teacher looks through: a frozen network that gives features of an image.

Shapes: B batch, H W pixels, N = h * w cells of the student's grid, D dense features, S summary.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

Grid = tuple[int, int]


class Seen(NamedTuple):
    """What a backbone sees in a batch of images."""

    dense_BND: Tensor  # one vector per cell of the grid, row by row
    summary_BS: Tensor  # one vector for the whole image


class Backbone(Protocol):
    """A frozen network; `digest` names its weights."""

    name: str
    digest: str

    def __call__(self, image_BHW3: Tensor, grid: Grid) -> Seen:
        """Return float32 features, on the CPU, of uint8 images. InputError for an unfit grid."""
        ...


def on_grid(levels: tuple[Tensor, ...], grid: Grid) -> Tensor:
    """Bring levels [B, D, h, w] of any stride to the grid and join them: [B, N, sum of D].

    Levels of the middle strides together, as PatchCore joins them (Roth et al., arXiv 2106.08265,
    section 3.1): the last one alone knows classes, not textures.
    """
    fitted = [F.adaptive_avg_pool2d(level, grid) for level in levels]
    return torch.cat(fitted, 1).flatten(2).transpose(1, 2)


def the_device() -> torch.device:
    """Return the first GPU where there is one; a teacher only looks, so any device will do."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bring_to(device: torch.device, model: nn.Module) -> None:
    """Bring a model there, in place; nothing happens where it is already."""
    with torch.inference_mode(mode=False):  # else its weights could not be moved or used elsewhere
        model.to(device)
