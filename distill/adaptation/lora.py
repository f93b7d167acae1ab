"""A student adapted by few weights: low-rank additions to its Linears, and its heads.

LoRA (Hu et al., arXiv 2106.09685) adds to a frozen weight W the product (alpha / r) B A of two thin
matrices; B starts at 0, so that an adapted student begins as the one it came from. Merged, the sum
is one weight again: what is exported has no trace of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from distill.students.student import Student
from edge.errors import InputError

PARAMETER_SHARE = 0.01
"""Of the student's parameters, what an adaptation trains at most."""

_TRUNKS = ("image_blocks", "sensor_blocks", "joint_blocks")
_HIGHEST_RANK = 64  # above it more rank buys nothing on a line's few parts
_ALPHA_PER_RANK = 2.0


@dataclass(frozen=True)
class Adaptation:
    """What of a student is trained."""

    rank: int
    trained: int  # parameters
    total: int  # parameters of the student, frozen ones too

    @property
    def share(self) -> float:
        """The trained part of all."""
        return self.trained / self.total

    def text(self) -> str:
        """Say it in one line."""
        return (
            f"LoRA of rank {self.rank} and the heads: {self.trained:,} of {self.total:,} "
            f"parameters ({self.share:.2%}) learn"
        )


def with_lora(student: Student) -> Adaptation:
    """Freeze the student, in place, but for its heads and additions to the trunk's Linears.

    The rank is the highest that keeps the trained share within `PARAMETER_SHARE`. Raises
    InputError where not even rank 1 does.
    """
    with _silent_imports():
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 (seconds to import)

    total = sum(weight.numel() for weight in _own(student))
    linears = _linears(student)
    heads = sum(weight.numel() for weight in student.heads.parameters())
    per_rank = sum(linear.in_features + linear.out_features for linear in linears.values())
    rank = min(_HIGHEST_RANK, int((PARAMETER_SHARE * total - heads) // per_rank))
    if rank < 1:
        raise InputError(
            where="the student",
            expected=f"room for LoRA of rank 1 in {PARAMETER_SHARE:.0%} of its parameters",
            found=f"{total:,} parameters, of which rank 1 and the heads take {heads + per_rank:,}",
            do="So small a student is distilled anew in minutes: use `edge distill`.",
        )
    student.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=round(_ALPHA_PER_RANK * rank),
        target_modules=list(linears),
        bias="none",
    )
    with _silent_imports():
        inject_adapter_in_model(config, student)
    student.heads.requires_grad_(True)
    trained = sum(weight.numel() for weight in student.parameters() if weight.requires_grad)
    return Adaptation(rank, trained, total)


def merge_lora(student: Student) -> None:
    """Add what was learned to the weights it belongs to, in place; nothing of LoRA remains."""
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415

    adapted = [(name, m) for name, m in student.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in adapted:
        layer.merge(safe_merge=True)  # raises where a sum is not finite
        parent, _, leaf = name.rpartition(".")
        setattr(student.get_submodule(parent), leaf, layer.get_base_layer())
    student.requires_grad_(True)
    student.stem.requires_grad_(False)


@contextmanager
def _silent_imports() -> Iterator[None]:
    """Keep it quiet: peft looks for torchao, which logs each GPU kernel that this machine lacks."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _linears(student: Student) -> dict[str, nn.Linear]:
    """Name the Linears of the trunk: attention, and MLPs where they are dense.

    The weights of experts are products of their own and stay as they are.
    """
    return {
        f"{trunk}.{name}": module
        for trunk in _TRUNKS
        for name, module in student.get_submodule(trunk).named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("router")
    }


def _own(student: Student) -> list[nn.Parameter]:
    """The parameters that are exported: the heads that answer teachers are not."""
    return [
        weight
        for name, weight in student.named_parameters()
        if not name.startswith("teacher_heads")
    ]
