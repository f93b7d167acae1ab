# ruff: noqa: N802 - the names are CUDA's
"""A GPU and TensorRT in plain memory, for machines that have neither.

What is real: the calls, their order, addresses, sizes, directions, and what a capture bears. A
"plan" is an ONNX file's bytes, and runs on onnxruntime at the addresses that the engine set. So the
engine's own logic is tested; no kernel, no driver and no timing is.
"""

from __future__ import annotations

import ctypes
import enum
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnxruntime

from edge.model_spec import ModelSpec
from edge.plan import HEADER_BYTES, MachineIdentity, PlanStamp, write_stamp

VERSION = "10.3.0"
L4T = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
IDENTITY = MachineIdentity(
    gpu="Orin",
    compute_capability="8.7",
    driver="L4T 36.4.3",
    cuda="12.6",
    module="NVIDIA Jetson AGX Orin Developer Kit",
    power_mode="MODE_50W",
)
NUMPY_KINDS = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(int64)": "int64"}


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorStreamCaptureUnsupported = 900


class Cudart:
    """What `cuda.bindings.runtime` offers and the engine uses; `room` bytes, then no more."""

    cudaStreamNonBlocking, cudaMemAttachGlobal = 1, 1
    cudaHostAllocDefault, cudaHostAllocMapped = 0, 2
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrIntegrated="integrated",
        cudaDevAttrCanMapHostMemory="maps",
        cudaDevAttrManagedMemory="managed",
    )

    def __init__(self, *, count=1, integrated=True, maps=True, managed=True, room=1 << 30):
        self.attributes = {"integrated": integrated, "maps": maps, "managed": managed}
        self.count, self.room = count, room
        self.live: dict[str, set[int]] = {"stream": set(), "event": set(), "graph": set()}
        self.memory: dict[int, object] = {}
        self.capturing: list | None = None
        self.graphs: dict[int, list] = {}
        self.log: list[str] = []
        self._next = 1000

    def enqueue(self, name, work):
        """Do it now; where a capture is under way, record it and do it at each launch."""
        self.log.append(f"{name}, captured" if self.capturing is not None else name)
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def cudaGetDeviceCount(self):
        return Status.cudaSuccess, self.count

    def cudaSetDevice(self, device):
        return (Status.cudaSuccess,)

    def cudaGetDeviceProperties(self, device):
        return Status.cudaSuccess, SimpleNamespace(name=b"Orin", major=8, minor=7)

    def cudaDeviceGetAttribute(self, attribute, device):
        return Status.cudaSuccess, int(self.attributes[attribute])

    def cudaDriverGetVersion(self):
        return Status.cudaSuccess, 12060

    def cudaMemGetInfo(self):
        return Status.cudaSuccess, self.room, 1 << 30

    def cudaStreamCreateWithFlags(self, flags):
        return Status.cudaSuccess, self._new("stream")

    def cudaStreamDestroy(self, stream):
        return self._gone("stream", stream)

    def cudaEventCreate(self):
        return Status.cudaSuccess, self._new("event")

    def cudaEventDestroy(self, event):
        return self._gone("event", event)

    def cudaEventRecord(self, event, stream):
        assert self.capturing is None, "an event in a capture cannot be read"
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, start, end):
        return Status.cudaSuccess, 0.25

    def cudaMalloc(self, size):
        return self._memory(size)

    def cudaMallocManaged(self, size, flags):
        return self._memory(size)

    def cudaHostAlloc(self, size, flags):
        return self._memory(size)

    def cudaHostGetDevicePointer(self, host, flags):
        assert host in self.memory
        return Status.cudaSuccess, host

    def cudaFree(self, address):
        del self.memory[address]
        return (Status.cudaSuccess,)

    def cudaFreeHost(self, address):
        del self.memory[address]
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        assert {target, source} <= set(self.memory)
        assert stream in self.live["stream"]
        name = "copy in" if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice else "copy out"
        self.enqueue(name, lambda: ctypes.memmove(target, source, size))
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        if self.capturing is not None:
            return (Status.cudaErrorStreamCaptureUnsupported,)
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.capturing = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        recorded, self.capturing = self.capturing, None
        graph = self._new("graph")
        self.graphs[graph] = recorded
        return Status.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph, flags):
        ready = self._new("graph")
        self.graphs[ready] = self.graphs[graph]
        return Status.cudaSuccess, ready

    def cudaGraphLaunch(self, graph, stream):
        assert graph in self.live["graph"]
        self.log.append("launch")
        for work in self.graphs[graph]:
            work()
        return (Status.cudaSuccess,)

    def cudaGraphDestroy(self, graph):
        return self._gone("graph", graph)

    def cudaGraphExecDestroy(self, graph):
        return self._gone("graph", graph)

    def _new(self, kind):
        self._next += 1
        self.live[kind].add(self._next)
        return self._next

    def _gone(self, kind, one):
        self.live[kind].remove(one)
        return (Status.cudaSuccess,)

    def _memory(self, size):
        if size > self.room:
            return Status.cudaErrorMemoryAllocation, None
        self.room -= size
        block = (ctypes.c_uint8 * size)()
        ctypes.memset(block, 0xEE, size)  # as left by somebody else
        self.memory[ctypes.addressof(block)] = block
        return Status.cudaSuccess, ctypes.addressof(block)


class ILogger:
    ERROR, INTERNAL_ERROR = 1, 0


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = 1, 2


class Context:
    """What runs a plan: one pass is enqueued, and done where the stand-in of CUDA says."""

    def __init__(self, engine: Engine):
        self.engine, self.addresses, self.runs = engine, {}, 0

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        rt = self.engine.rt
        assert stream in rt.live["stream"]
        if rt.capturing is not None and not self.runs:
            return False  # kernels are loaded in the first run, which a capture does not bear
        self.runs += 1
        rt.enqueue("plan", self.run_now)
        return True

    def run_now(self):
        session = self.engine.session
        names = [tensor.name for tensor in session.get_outputs()]
        feeds = {tensor.name: self.at(tensor) for tensor in session.get_inputs()}
        for tensor, value in zip(session.get_outputs(), session.run(names, feeds), strict=True):
            self.at(tensor)[...] = value

    def at(self, tensor):
        kind = np.dtype(NUMPY_KINDS[tensor.type])
        count = int(np.prod(tensor.shape))
        memory = (ctypes.c_uint8 * (count * kind.itemsize)).from_address(
            self.addresses[tensor.name]
        )
        return np.frombuffer(memory, kind).reshape(tensor.shape)


class Engine:
    """What `tensorrt` makes of a plan; here, of an ONNX file's bytes."""

    device_memory_size_v2 = 12_000_000

    def __init__(self, rt: Cudart, content):
        self.rt = rt
        self.session = onnxruntime.InferenceSession(bytes(content))
        self.tensors = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors = len(self.tensors)

    def _named(self, name):
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def get_tensor_name(self, index):
        return self.tensors[index].name

    def get_tensor_dtype(self, name):
        return NUMPY_KINDS[self._named(name).type]

    def get_tensor_shape(self, name):
        return self._named(name).shape

    def get_tensor_mode(self, name):
        inputs = [tensor.name for tensor in self.session.get_inputs()]
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def create_execution_context(self):
        return Context(self) if self.rt.room > 1000 else None


def tensorrt_on(rt: Cudart):
    """A module like `tensorrt`, whose plans are ONNX files."""

    class Runtime:
        def __init__(self, logger):
            self.logger, self.DLA_core = logger, -1

        def deserialize_cuda_engine(self, content):
            try:
                return Engine(rt, content)
            except Exception as error:
                self.logger.log(ILogger.ERROR, f"no plan: {str(error)[:60]}")
                return None

    return SimpleNamespace(
        __version__=VERSION,
        ILogger=ILogger,
        Runtime=Runtime,
        TensorIOMode=TensorIOMode,
        nptype=np.dtype,
    )


def stamp_of(spec: ModelSpec, **changes) -> PlanStamp:
    stamp = PlanStamp(
        bundle_digest="b" * 64,
        form="int8",
        spec=spec,
        flavour="tensorrt",
        tensorrt=VERSION,
        built_for=IDENTITY,
        dla_core=None,
        workspace_bytes=1 << 28,
        seconds=12.5,
        created_at="2026-11-22T00:00:00+00:00",
    )
    return msgspec.structs.replace(stamp, **changes)


def write_plan(path: Path, content: bytes, stamp: PlanStamp) -> Path:
    path.write_bytes(bytes(HEADER_BYTES) + content)
    write_stamp(path, stamp)
    return path
