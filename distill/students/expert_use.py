"""How a student with experts uses them: measured on a batch, by hooks that are there for it alone.

Each expert takes the same number of tokens by construction (`trunk.Experts`), so equal shares say
little. What can go wrong is that all take the same tokens, that many tokens are taken by none, or
that the router's weight lies on a few: those are measured.

Shapes: B batch, N tokens, E experts, K tokens per expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from distill.students.trunk import Experts


class ExpertUse(msgspec.Struct, frozen=True):
    """What the experts of one block did with the tokens that were there (masked ones apart)."""

    block: str  # the module's name in the student
    token_shares: tuple[float, ...]  # of each expert, of all places that experts gave to tokens
    weight_shares: tuple[float, ...]  # of each expert, of the weight in the mixture
    taken_by_none: float  # share of the tokens; they pass by the residual alone
    overlap: float  # share of an expert's tokens that another one takes too, mean over all pairs
    chance_overlap: float  # what it would be, did each take its tokens at random


@torch.no_grad()
def expert_use(student: nn.Module, run: Callable[[], object]) -> tuple[ExpertUse, ...]:
    """Measure every mixture of experts in `student` while `run()` passes a batch through it.

    Empty where the student has none. `run` makes exactly one pass; whether dropout is on while it
    does is its own affair.
    """
    chosen: dict[str, tuple[Tensor, Tensor]] = {}

    def noted(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            assert isinstance(module, Experts)
            x_BND, bias_B11N = inputs[0], inputs[1] if len(inputs) > 1 else None
            weight_BEK, chosen_BEKN = module.choose(x_BND, bias_B11N)
            weight_BEN = (weight_BEK[..., None] * chosen_BEKN).sum(2).float()
            there_BN = (
                torch.ones_like(weight_BEN[:, 0])
                if bias_B11N is None
                else (bias_B11N[:, 0, 0] >= 0).expand(len(x_BND), -1).float()
            )
            chosen[name] = (weight_BEN, there_BN)

        return note

    with ExitStack() as hooks:
        for name, module in student.named_modules():
            if isinstance(module, Experts):
                hooks.callback(module.register_forward_pre_hook(noted(name)).remove)
        run()
    return tuple(_use_of(name, *seen) for name, seen in chosen.items())


def expert_text(uses: Sequence[ExpertUse]) -> str:
    """Say it in a sentence, over all blocks."""
    tokens = [share for use in uses for share in use.token_shares]
    weights = [share for use in uses for share in use.weight_shares]
    by_none = [use.taken_by_none for use in uses]
    overlap, chance = (
        sum(values) / len(uses)
        for values in ([u.overlap for u in uses], [u.chance_overlap for u in uses])
    )
    return (
        f"experts of {len(uses)} blocks: each takes {min(tokens):.1%} to {max(tokens):.1%} of the "
        f"tokens and {min(weights):.1%} to {max(weights):.1%} of the weight; "
        f"{sum(by_none) / len(uses):.1%} of the tokens (at most {max(by_none):.1%} in a block) are "
        f"taken by none; two experts share {overlap:.1%} of their tokens (by chance {chance:.1%})"
    )


def _use_of(name: str, weight_BEN: Tensor, there_BN: Tensor) -> ExpertUse:
    """A token that is absent weighs 0 and counts nowhere, whoever was made to take it."""
    taken_BEN = ((weight_BEN > 0) & (there_BN[:, None] > 0)).double()
    experts = taken_BEN.shape[1]
    places_BE = taken_BEN.sum(2)
    common_BEE = taken_BEN @ taken_BEN.transpose(1, 2)
    of_each_BEE = common_BEE / places_BE.clamp_min(1)[..., None]
    pairs = 1.0 - torch.eye(experts, dtype=torch.double, device=taken_BEN.device)
    chance_BE = places_BE / there_BN.double().sum(1, keepdim=True).clamp_min(1)
    untaken_BN = (taken_BEN.sum(1) == 0) & (there_BN > 0)
    weight_E = (weight_BEN.double() * taken_BEN).sum((0, 2))
    return ExpertUse(
        block=name,
        token_shares=_shares(places_BE.sum(0)),
        weight_shares=_shares(weight_E),
        taken_by_none=float(untaken_BN.sum() / there_BN.sum().clamp_min(1)),
        overlap=float((of_each_BEE * pairs).sum((1, 2)).mean() / max(experts * (experts - 1), 1)),
        chance_overlap=float(chance_BE.mean()),
    )


def _shares(amount_E: Tensor) -> tuple[float, ...]:
    """Return what part of the whole each one is."""
    shares: list[float] = (amount_E / amount_E.sum().clamp_min(1e-12)).tolist()
    return tuple(shares)
