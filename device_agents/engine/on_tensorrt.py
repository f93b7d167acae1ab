"""The engine on TensorRT or TensorRT-RTX: a plan, replayed as one captured cuda_graph.

    inputs in host memory -> [ copy in | the plan | copy out ] -> scores in host memory
                               one cuda_graph, one launch

Everything is allocated before the first part: the plan's own memory, the blocks for its inputs and
outputs, and the cuda_graph, captured after two ordinary runs (the first one loads kernels, which a
capture does not bear). A plan has one batch size, so it has one cuda_graph.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from device_agents.engine.buffers import Buffers, MemoryKind, memory_kind_for
from device_agents.engine.gpu import checked, cudart, gpu_or_stop, identity_of
from device_agents.engine.on_onnxruntime import place_in
from device_agents.engine.tensors import refuse_mismatch
from edge.errors import InputError, MachineError
from edge.model_spec import ModelSpec, TensorSpec
from edge.plan import Plan
from edge.scorer import ModelInputs, Scores, Split, scores_from_outputs

if TYPE_CHECKING:
    import tensorrt as trt

_WARM_UP_RUNS = 2
_INSTALL = {
    "tensorrt": "JetPack brings it (apt install python3-libnvinfer); a virtual environment sees it "
    "with --system-site-packages.",
    "tensorrt_rtx": "Install the version that built the plan: pip install tensorrt-rtx.",
}

log = logging.getLogger("engine")


class TensorrtEngine:
    """An `edge.scorer.Engine` on a plan. Make it with `engine_from_plan`; leaving it frees it."""

    def __init__(
        self, context: trt.IExecutionContext, buffers: Buffers, spec: ModelSpec, name: str
    ) -> None:
        # The context holds TensorRT's engine, which holds the weights: all go with it.
        self._context: trt.IExecutionContext | None = context
        self._buffers = buffers
        self._spec = spec
        self._rt = cudart()
        self._cuda_graph: Any = None
        self.name = name  # what an inspection reports, such as "tensorrt 10.3.0 int8"
        for tensor, address in buffers.addresses().items():
            taken = context.set_tensor_address(tensor, address)
            assert taken, tensor

    @property
    def spec(self) -> ModelSpec:
        """The contract that the plan's tensors were held against."""
        return self._spec

    def score(self, inputs: ModelInputs) -> Scores:
        """Score one sample; `inputs` as `edge.prepare.model_inputs` makes them (batch of 1)."""
        return self.score_batch([inputs])[0]

    def score_batch(self, several: Sequence[ModelInputs]) -> list[Scores]:
        """Score up to `spec.batch` samples in one run; empty places hold what lay there before.

        One caller at a time: there is one set of buffers.
        """
        place_in(self._buffers.inputs(), several)
        self._run()
        outputs = self._buffers.outputs()
        return [scores_from_outputs(outputs, place) for place in range(len(several))]

    def split(self, several: Sequence[ModelInputs]) -> Split:
        """Run once, uncaptured, with the GPU's own clock between the steps."""
        rt, stream = self._rt, self._buffers.stream
        with ExitStack() as events:
            marks = [_event(rt, events) for _ in range(4)]
            started_s = time.perf_counter()
            place_in(self._buffers.inputs(), several)
            placed_s = time.perf_counter()
            checked(rt.cudaEventRecord(marks[0], stream))
            self._buffers.to_gpu()
            checked(rt.cudaEventRecord(marks[1], stream))
            self._enqueue_plan()
            checked(rt.cudaEventRecord(marks[2], stream))
            self._buffers.from_gpu()
            checked(rt.cudaEventRecord(marks[3], stream))
            self._buffers.wait()
            waited_s = time.perf_counter()
            outputs = self._buffers.outputs()
            for place in range(len(several)):
                scores_from_outputs(outputs, place)
            ended_s = time.perf_counter()
            into_ms, compute_ms, back_ms = (
                float(checked(rt.cudaEventElapsedTime(begin, end)))
                for begin, end in itertools.pairwise(marks)
            )
        on_gpu_ms = into_ms + compute_ms + back_ms
        on_host_ms = (placed_s - started_s + ended_s - waited_s) * 1e3
        wait_ms = max(0.0, (waited_s - placed_s) * 1e3 - on_gpu_ms)
        return Split(into_ms + back_ms + on_host_ms, compute_ms, wait_ms)

    def start(self, *, cuda_graph: bool) -> None:
        """Run twice, so that nothing is loaded later; then capture, if asked to."""
        for _ in range(_WARM_UP_RUNS):
            self._enqueue()
            self._buffers.wait()
        if cuda_graph:
            self._cuda_graph = self._captured()
            self._run()

    def _run(self) -> None:
        if self._cuda_graph is None:
            self._enqueue()
        else:
            checked(self._rt.cudaGraphLaunch(self._cuda_graph, self._buffers.stream))
        self._buffers.wait()

    def _enqueue(self) -> None:
        self._buffers.to_gpu()
        self._enqueue_plan()
        self._buffers.from_gpu()

    def _enqueue_plan(self) -> None:
        assert self._context is not None, "the engine was closed"
        if not self._context.execute_async_v3(self._buffers.stream):
            raise MachineError(
                where=self.name,
                expected="the plan to run",
                found="TensorRT refused; its reason is in the log",
                do="Look at the free memory; rebuild the plan with `edge build`.",
            )

    def _captured(self) -> Any:
        """Capture one run and return it ready to launch."""
        rt, stream = self._rt, self._buffers.stream
        only_this_thread = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(rt.cudaStreamBeginCapture(stream, only_this_thread))
        try:
            self._enqueue()
        finally:
            ended = rt.cudaStreamEndCapture(stream)
        recorded = checked(ended)
        try:
            ready = checked(rt.cudaGraphInstantiate(recorded, 0))
        finally:
            rt.cudaGraphDestroy(recorded)
        return ready

    def close(self) -> None:
        """Free the cuda_graph, the buffers and the plan, in that order; once."""
        cuda_graph, self._cuda_graph = self._cuda_graph, None
        if cuda_graph is not None:
            self._rt.cudaGraphExecDestroy(cuda_graph)
        self._buffers.close()
        self._context = None

    def __enter__(self) -> TensorrtEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def engine_from_plan(
    plan: Plan, *, cuda_graph: bool = True, memory: MemoryKind | None = None
) -> TensorrtEngine:
    """Load a plan, its stamp held against this machine, its tensors against its spec.

    `memory` None: chosen by what the GPU reports (see `buffers`). Raises MachineError where there
    is no GPU or no TensorRT, InputError where the plan does not fit.
    """
    stamp = plan.stamp
    trt_here = tensorrt_module(stamp.flavour)
    gpu = gpu_or_stop(f"plan {plan.path.name}")
    plan.refuse_misfit(flavour=stamp.flavour, tensorrt=trt_here.__version__, here=identity_of(gpu))
    engine = _deserialised(plan, trt_here)
    inputs, outputs = _tensors_of(engine, trt_here)
    refuse_mismatch(plan.path, stamp.spec, inputs, outputs)
    context: trt.IExecutionContext | None = engine.create_execution_context()
    if context is None:
        raise _no_memory(plan, engine)
    buffers = Buffers(cudart(), inputs, outputs, memory or memory_kind_for(gpu))
    name = f"{stamp.flavour} {trt_here.__version__} {stamp.form}"
    made = TensorrtEngine(context, buffers, stamp.spec, name)
    try:
        made.start(cuda_graph=cuda_graph)
    except BaseException:
        made.close()
        raise
    log.info("%s: %s, buffers %s, cuda_graph %s", plan.path, name, buffers.kind, cuda_graph)
    return made


def tensorrt_module(flavour: str) -> Any:
    """Import TensorRT's or TensorRT-RTX's Python module. Raises MachineError."""
    try:
        module = importlib.import_module(flavour)
    except (ImportError, OSError) as error:
        module, found = None, str(error)
    else:
        found = "a folder of that name without the package"  # type stubs leave one
    if module is None or not hasattr(module, "Runtime"):
        raise MachineError(
            where=f"a plan of {flavour}",
            expected=f"the Python package '{flavour}'",
            found=found,
            do=_INSTALL[flavour],
        )
    return module


def _deserialised(plan: Plan, trt_here: Any) -> trt.ICudaEngine:
    """Load TensorRT's own plan. Raises InputError with TensorRT's reason."""
    logger = _logger(trt_here)
    runtime: trt.Runtime = trt_here.Runtime(logger)
    if plan.stamp.dla_core is not None:
        runtime.DLA_core = plan.stamp.dla_core
    with plan.bytes() as content:
        engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise InputError(
            where=plan.path,
            expected="a plan that TensorRT loads",
            found="; ".join(logger.errors)[:600] or "no reason given",
            do="Rebuild it on this machine: edge build BUNDLE --out PLAN --force.",
        )
    return engine


def _tensors_of(
    engine: trt.ICudaEngine, trt_here: Any
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Return the plan's own inputs and outputs."""
    sides: tuple[list[TensorSpec], list[TensorSpec]] = ([], [])
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = np.dtype(trt_here.nptype(engine.get_tensor_dtype(name))).name
        sizes = engine.get_tensor_shape(name)
        shape = tuple(int(sizes[place]) for place in range(len(sizes)))
        is_input = engine.get_tensor_mode(name) == trt_here.TensorIOMode.INPUT
        sides[0 if is_input else 1].append(TensorSpec(name, kind, shape))
    return sides


def _logger(trt_here: Any) -> Any:
    """Make a logger of TensorRT's that passes errors on to ours and keeps them."""

    class Log(trt_here.ILogger):  # type: ignore[misc] # the base exists only where TensorRT does
        def __init__(self) -> None:
            trt_here.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt_here.ILogger.ERROR, trt_here.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
                log.error("%s", message)

    return Log()


def _event(rt: Any, events: ExitStack) -> Any:
    event = checked(rt.cudaEventCreate())
    events.callback(rt.cudaEventDestroy, event)
    return event


def _no_memory(plan: Plan, engine: trt.ICudaEngine) -> MachineError:
    return MachineError(
        where=plan.path,
        expected=f"{engine.device_memory_size_v2 / 1e6:.0f} MB of the GPU's memory, and the "
        f"weights' {plan.stamp.plan_bytes / 1e6:.0f} MB",
        found="less",
        do="Stop other programs (a desktop takes up to 865 MB: systemctl isolate "
        "multi-user.target), or build a smaller student.",
    )
