"""The learning rate and the random numbers of a step: functions of its number and nothing else."""

from __future__ import annotations

import math

import numpy as np
import torch

from distill.recipe import Stage


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov and Hutter, arXiv 1608.03983)."""
    warm = min(1.0, (step + 1) / warmup_steps)
    return warm * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def set_learning_rate(
    optimizer: torch.optim.Optimizer, stage: Stage, step: int, steps: int
) -> float:
    """Set and return the rate of one step (from 0) of a stage."""
    rate = stage.learning_rate * learning_rate_factor(step, steps, stage.warmup_steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def seed_for(*numbers: int) -> int:
    """Return one seed for (recipe's seed, stage, step, piece)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
