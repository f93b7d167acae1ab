"""The running average of the weights: what is exported is the average, not the last step.

It lives in the optimizer's state, beside Adam's moments: what saves, loads, moves and shards those
does the same to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

_AVERAGE = "average"


def keep_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Update the average after each step that `optimizer` makes. With `decay` 0 there is none.

    a_t = d_t a_(t-1) + (1 - d_t) w_t, where d_t = min(decay, (1 + t) / (10 + t)), so that a short
    run forgets its random start (the warm-up of TensorFlow's ExponentialMovingAverage).
    """
    if not decay:
        return

    def after_step(optimizer: torch.optim.Optimizer, _words: Any, _named: Any) -> None:
        _follow(optimizer, decay)

    optimizer.register_step_post_hook(after_step)


@torch.no_grad()
def take_average(optimizer: torch.optim.Optimizer) -> None:
    """Put the average in the weights' place, where one was kept."""
    for weight, state in optimizer.state.items():
        if _AVERAGE in state:
            weight.copy_(state[_AVERAGE])


@torch.no_grad()
def _follow(optimizer: torch.optim.Optimizer, decay: float) -> None:
    stepped = {weight: state for weight, state in optimizer.state.items() if state}
    for weight, state in stepped.items():
        state.setdefault(_AVERAGE, weight.detach().clone())
    if not stepped:
        return
    steps = float(next(iter(stepped.values()))["step"])
    decay = min(decay, (1.0 + steps) / (10.0 + steps))
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    averages = [state[_AVERAGE] for state in stepped.values()]
    update(averages, [weight.detach() for weight in stepped], steps)
