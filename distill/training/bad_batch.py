"""A loss or a gradient that is no number ends a training before it reaches the weights.

What it came from is kept: samples by name, and the tensors as the student met them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from distill.checkpoint import save_whole
from distill.training.pieces import Piece
from edge.errors import AnswerIsNo, MachineError

_NAMES_SHOWN = 8


@dataclass(frozen=True)
class WorkedPiece:
    """A piece of the step under way, and what its losses were."""

    piece: Piece
    names: tuple[str, ...]  # of the losses
    values: Tensor  # what is minimised, then each loss; still on the device

    @property
    def losses(self) -> dict[str, float]:
        """Each loss as a number."""
        return dict(zip(self.names, self.values[1:].tolist(), strict=True))

    @property
    def is_finite(self) -> bool:
        """Tell whether every loss is one."""
        return all(map(math.isfinite, self.values.tolist()))


def refuse_bad_batch(
    folder: Path,
    where: str,
    worked: Sequence[WorkedPiece],
    gradient_norm: float,
    learning_rate_key: str,
) -> None:
    """Keep what the step came from and raise AnswerIsNo; it names the key of the learning rate.

    Where single pieces of it gave losses that are no numbers, those are kept; else all are.
    """
    guilty = [each for each in worked if not each.is_finite] or list(worked)
    path = folder / f"bad_batch-{guilty[0].piece.number}.pt"
    try:
        save_whole(path, [_content(each) for each in guilty])
        kept = f", and the batch as {path}"
    except MachineError as error:
        kept = f", but not the batch ({error.found})"
    samples = [name for each in guilty for name in each.piece.batch.samples]
    shown = ", ".join(samples[:_NAMES_SHOWN]) + (", ..." if len(samples) > _NAMES_SHOWN else "")
    losses = ", ".join(f"{name} {loss:g}" for name, loss in guilty[0].losses.items())
    raise AnswerIsNo(
        where=where,
        expected="finite losses and gradients",
        found=f"losses {losses}; gradient norm {gradient_norm:g}; samples {shown}",
        do=f"What was saved of the run is kept{kept}. Look for absurd readings with "
        f"`edge recordings show`, or lower the learning rate (--set {learning_rate_key}=...), "
        "and begin again with --force.",
    )


def _content(worked: WorkedPiece) -> dict[str, object]:
    """Everything as plain tensors and names, so that it can be read with weights_only."""
    batch = worked.piece.batch
    return {
        "samples": list(batch.samples),
        "losses": worked.losses,
        "stem": batch.stem_BGS.cpu(),
        "sensor": None if batch.sensor_BCT is None else batch.sensor_BCT.cpu(),
        "lesson": {
            name: tuple(value) if isinstance(value, tuple) else value
            for name, value in batch.lesson._asdict().items()
        },
    }
