"""The owner of a plan's buffers and stream, made once, at fixed addresses, freed by a `with`.

There are two blocks of memory, one for all inputs and one for all outputs. Where they lie is chosen
by what the GPU reports:

mapped    pinned host memory that the GPU reads and writes itself; nothing is copied. For GPUs that
          share the host's memory: an Orin's is I/O coherent, and a frame is touched once.
managed   one block for both sides, moved by the driver; where such a GPU cannot map host memory
device    memory of the GPU's own, with a pinned block on the host; two copies a run
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from device_agents.engine.gpu import Gpu, checked
from edge.model_spec import TensorSpec

MemoryKind = Literal["mapped", "managed", "device"]
_ALIGNMENT_BYTES = 256  # as cudaMalloc's own


def memory_kind_for(gpu: Gpu) -> MemoryKind:
    """Choose where a run's inputs and outputs lie."""
    if gpu.integrated and gpu.maps_host_memory:
        return "mapped"
    return "managed" if gpu.integrated and gpu.has_managed_memory else "device"


class Buffers:
    """One stream, and the memory that a plan reads and writes. Use it as a context manager."""

    def __init__(
        self,
        rt: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        kind: MemoryKind,
    ) -> None:
        self._rt = rt
        self.kind = kind
        self._stream: Any = None
        self._blocks: list[_Block] = []
        try:
            self._stream = checked(rt.cudaStreamCreateWithFlags(rt.cudaStreamNonBlocking))
            self._in = self._block(inputs)
            self._out = self._block(outputs)
        except BaseException:
            self.close()
            raise

    @property
    def stream(self) -> int:
        """The stream's address; never the default stream, which cannot be captured."""
        return int(self._stream)

    def addresses(self) -> dict[str, int]:
        """Return each tensor's address on the GPU, by name."""
        return {**self._in.addresses, **self._out.addresses}

    def inputs(self) -> Mapping[str, NDArray[Any]]:
        """Return the input tensors in host memory: write into them before a run."""
        return self._in.arrays

    def outputs(self) -> Mapping[str, NDArray[Any]]:
        """Return the output tensors in host memory: read them after `wait`."""
        return self._out.arrays

    def to_gpu(self) -> None:
        """Enqueue the copy of the inputs, where one is needed."""
        if self.kind == "device":
            to, block = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice, self._in
            self._copy(block.device, block.host, block.bytes, to)

    def from_gpu(self) -> None:
        """Enqueue the copy of the outputs, where one is needed."""
        if self.kind == "device":
            to, block = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost, self._out
            self._copy(block.host, block.device, block.bytes, to)

    def wait(self) -> None:
        """Wait until all that was enqueued is done."""
        checked(self._rt.cudaStreamSynchronize(self._stream))

    def close(self) -> None:
        """Free everything, once."""
        blocks, self._blocks = self._blocks, []
        for block in blocks:
            if self.kind == "managed":
                self._rt.cudaFree(block.host)
            else:
                self._rt.cudaFreeHost(block.host)
            if self.kind == "device":
                self._rt.cudaFree(block.device)
        stream, self._stream = self._stream, None
        if stream is not None:
            self._rt.cudaStreamDestroy(stream)

    def __enter__(self) -> Buffers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _block(self, tensors: Sequence[TensorSpec]) -> _Block:
        rt, size = self._rt, _ends(tensors)[-1]
        if self.kind == "managed":
            host = device = int(checked(rt.cudaMallocManaged(size, rt.cudaMemAttachGlobal)))
        elif self.kind == "mapped":
            host = int(checked(rt.cudaHostAlloc(size, rt.cudaHostAllocMapped)))
            device = int(checked(rt.cudaHostGetDevicePointer(host, 0)))
        else:
            host = int(checked(rt.cudaHostAlloc(size, rt.cudaHostAllocDefault)))
            try:
                device = int(checked(rt.cudaMalloc(size)))
            except BaseException:
                rt.cudaFreeHost(host)
                raise
        block = _Block(tensors, size, host, device)
        self._blocks.append(block)
        return block

    def _copy(self, target: int, source: int, size: int, to: Any) -> None:
        checked(self._rt.cudaMemcpyAsync(target, source, size, to, self._stream))


class _Block:
    """Tensors side by side in one allocation, each aligned."""

    def __init__(self, tensors: Sequence[TensorSpec], size: int, host: int, device: int) -> None:
        self.host, self.device, self.bytes = host, device, size
        memory = memoryview((ctypes.c_uint8 * size).from_address(host))
        self.arrays: dict[str, NDArray[Any]] = {}
        self.addresses: dict[str, int] = {}
        for tensor, start in zip(tensors, (0, *_ends(tensors)), strict=False):
            count = int(np.prod(tensor.shape))
            flat: NDArray[Any] = np.frombuffer(memory, tensor.dtype, count, start)
            flat[...] = 0
            self.arrays[tensor.name] = flat.reshape(tensor.shape)
            self.addresses[tensor.name] = device + start


def _ends(tensors: Sequence[TensorSpec]) -> list[int]:
    """Return where each tensor's room ends, the first beginning at 0."""
    ends, at = [], 0
    for tensor in tensors:
        size = int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
        at += -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        ends.append(at)
    return ends
