"""The processes of one run: one here, or several that `accelerate launch` started.

What they are (one CPU, one GPU, DDP, FSDP2, DeepSpeed) is accelerate's matter and that of its
config file (`distill/launch/`). Here stands what a run needs besides: one process that does what
only one may do, and others that wait for it, for hours if need be.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast,
    broadcast_object_list,
)
from torch import nn

from distill.recipe import TrainRecipe
from edge.errors import EdgeError, InputError, MachineError

_LONGEST_WAIT = timedelta(days=30)  # for targets that the main process computes
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)

T = TypeVar("T")


def accelerator_for(train: TrainRecipe) -> Accelerator:
    """Join the run's processes, with the recipe's precision. Raises InputError, MachineError."""
    # An earlier run of this process may have had another precision, which accelerate remembers.
    AcceleratorState._reset_state()
    # Some gradients of one row have other strides than DDP's buckets; the row is what counts.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    accumulation = GradientAccumulationPlugin(
        num_steps=train.accumulate, sync_with_dataloader=False
    )
    try:
        accelerator = Accelerator(
            mixed_precision="no" if train.precision == "fp32" else train.precision,
            gradient_accumulation_plugin=accumulation,
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # saves a copy
                InitProcessGroupKwargs(timeout=_LONGEST_WAIT),
            ],
        )
    except ValueError as error:
        if "mixed precision requires" not in str(error):
            raise
        raise _no_such_precision(train, str(error)) from None
    _refuse_unfit(accelerator, train)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        asked = accelerator.state.deepspeed_plugin.deepspeed_config
        asked["gradient_clipping"] = train.gradient_limit
        asked["train_micro_batch_size_per_gpu"] = train.batch // pieces_of(accelerator, train)
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Tell whether no process holds the whole student while it is trained."""
    return accelerator.distributed_type in _SHARDED


def pieces_of(accelerator: Accelerator, train: TrainRecipe) -> int:
    """Return how many pieces a step's batch is worked through in, over all processes."""
    processes: int = accelerator.num_processes
    return processes * train.accumulate


def on_main(accelerator: Accelerator, work: Callable[[], object]) -> None:
    """Let the main process do `work`, while the others wait.

    It alone tells what went wrong; the others leave with its exit status and without a word.
    """
    told: list[int | None] = [None]
    if accelerator.is_main_process:
        try:
            work()
        except EdgeError as error:
            told = [error.exit_status]
            broadcast_object_list(told)
            raise
    broadcast_object_list(told)
    if told[0] is not None:
        raise SystemExit(told[0])


def first_on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Let the main process do `work`; then the others do it too, and find on disk what it left."""
    made: list[T] = []
    on_main(accelerator, lambda: made.append(work()))
    return made[0] if made else work()


def share_weights(module: nn.Module) -> None:
    """Give every process the main one's weights, in place: two machines may round differently."""
    broadcast([tensor.data for tensor in module.state_dict().values()])


def _refuse_unfit(accelerator: Accelerator, train: TrainRecipe) -> None:
    """Refuse what would silently be another run than the one that was asked for."""
    pieces = pieces_of(accelerator, train)
    if pieces > train.batch:
        raise InputError(
            where="train.batch",
            expected="at least one part in each piece of a batch",
            found=f"{train.batch} parts for {accelerator.num_processes} processes with "
            f"{train.accumulate} pieces each",
            do="Make train.batch larger, train.accumulate smaller, or start fewer processes.",
        )
    if train.precision == "fp16" and accelerator.device.type == "cpu":
        # accelerate would compute in fp32 and say nothing.
        raise _no_such_precision(train, "a CPU")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise MachineError(
            where="accelerate launch",
            expected=f"a GPU for each of the {started} processes",
            found=f"none for this one ({accelerator.device})",
            do="Start fewer processes, or say that CPUs will do: "
            "ACCELERATE_USE_CPU=true accelerate launch ...",
        )
    wants_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wants_fsdp and accelerator.num_processes > 1 and not is_sharded(accelerator):
        raise InputError(
            where="accelerate launch",
            expected="GPUs to shard the student over: accelerate shards over no others",
            found=f"{accelerator.distributed_type.value}, which would hold it whole everywhere",
            do="Take ddp.yaml on this machine.",
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED and train.ema_decay:
        raise InputError(
            where="train.ema_decay",
            expected="0 with DeepSpeed, whose optimizer keeps the weights to itself",
            found=f"{train.ema_decay:g}",
            do="Say --set train.ema_decay=0, or take fsdp2.yaml, which averages.",
        )


def _no_such_precision(train: TrainRecipe, found: str) -> MachineError:
    return MachineError(
        where="train.precision",
        expected=f"a device that computes in {train.precision}",
        found=found,
        do="Say --set train.precision=fp32 (or bf16).",
    )
