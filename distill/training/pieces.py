"""The pieces of the batches that one process works through, read ahead by worker processes.

Piece `p` of a step is a pure function of (seed, stage, epoch, step, p): whoever makes it makes the
same one, so workers change the speed and nothing else.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from distill.recipe import TrainRecipe
from distill.training.batches import Batch, Batches
from distill.training.processes import pieces_of
from edge.errors import EdgeError, MachineError


@dataclass(frozen=True)
class Piece:
    """A share of one step's batch, and its number among all of them."""

    number: int
    batch: Batch


class Pieces(Dataset[Piece | EdgeError]):
    """All pieces of a stage that are this process's, in order."""

    def __init__(self, batches: Batches, train: TrainRecipe, accelerator: Accelerator) -> None:
        self.batches = batches
        self.each = train.accumulate
        self.processes = accelerator.num_processes
        self.process = accelerator.process_index
        self.pieces = pieces_of(accelerator, train)

    def __getitem__(self, place: int) -> Piece | EdgeError:
        """Make one. What is wrong with a file is returned: raising it here would lose its parts."""
        step, turn = divmod(place, self.each)
        epoch, step = divmod(step, self.batches.steps_per_epoch)
        number = turn * self.processes + self.process
        try:
            batch = self.batches.piece(epoch, step, number, self.pieces)
        except EdgeError as error:
            return error
        return Piece(number, batch)


def read_ahead(
    pieces: Pieces, first_step: int, steps: int, workers: int
) -> Generator[Piece, None, None]:
    """Yield this process's pieces from `first_step` on. Raises what went wrong with a file."""
    loader = DataLoader(
        pieces,
        batch_size=None,
        sampler=range(first_step * pieces.each, steps * pieces.each),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_alone,
        # Forked workers share the memory-mapped targets; others would each be sent a copy.
        multiprocessing_context="fork" if workers else None,
    )
    reader = iter(loader)
    try:
        for piece in reader:
            if isinstance(piece, EdgeError):
                raise piece
            yield piece
    finally:
        if workers:
            # Now and not when it is collected: torch raises the end of a worker out of wherever
            # the program is by then.
            reader._shutdown_workers()  # type: ignore[attr-defined]


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on the device that learns from it."""
    if device.type == "cpu":
        return batch
    fields = {
        name: send_to_device(getattr(batch, name), device, non_blocking=True)
        for name in ("stem_BGS", "sensor_BCT", "lesson")
    }
    return replace(batch, **fields)


@contextmanager
def told_of_dead_workers() -> Iterator[None]:
    """Turn the end of a data worker into an error that says the next step.

    torch notices it by a signal, so it is raised wherever the training happens to be; or what the
    worker was about to hand over is missed first.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise MachineError(
            where="train.workers",
            expected="data workers that live as long as the training",
            found=(str(error) or "one that is gone").splitlines()[0].rstrip(". "),
            do="The system ends processes when memory runs out: look with `dmesg`, lower "
            "train.workers if need be, and go on with the same command and --resume.",
        ) from None


def _as_it_is(piece: object) -> Piece | EdgeError:
    return cast(Piece | EdgeError, piece)


def _leave_signals_alone(_worker: int) -> None:
    """Ctrl-C is for the training process: it ends its workers when the step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
