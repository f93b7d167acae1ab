"""What of a student is computed in float32, whatever the precision around it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def in_float32(like: Tensor) -> AbstractContextManager[object]:
    """Suspend mixed precision on the tensor's device.

    For what is read from raw values: half precision keeps two to three digits of a reading, and
    the small differences between them are what matters. Where nothing is mixed this does nothing,
    so that an exported graph has no trace of it.
    """
    device = like.device.type
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
