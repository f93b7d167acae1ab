"""The engine on onnxruntime: a bundle's ONNX file, on the CPU or by CUDA, its memory bound once.

What was asked for is what runs. A provider that is absent, or that onnxruntime drops silently, is
an error: a verdict that comes ten times later from a processor nobody chose is a wrong answer.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agents.engine.tensors import refuse_mismatch
from edge.errors import InputError, MachineError
from edge.model_spec import ModelSpec, TensorSpec
from edge.scorer import ModelInputs, Scores, Split, scores_from_outputs

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_WARM_UP_RUNS = 2  # the first run allocates (and captures), the second runs as all later ones do
_ARENA_FLOOR_BYTES = 512 << 20  # what the arena may take beside twice the weights,
_ARENA_FRAMES = 16  # and beside so many times the bytes of the frames: as floats, four copies
_OR_WITHOUT_GRAPH = " Or run it with cuda_graph = false."
_NUMPY_NAMES = {
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}


class OnnxEngine:
    """An `edge.scorer.Engine` on onnxruntime. Make it with `engine_from_onnx`."""

    def __init__(self, session: Any, spec: ModelSpec, name: str, device: str = "cpu") -> None:
        from onnxruntime import OrtValue

        self._session = session
        self._spec = spec
        self._device = device
        self.name = name  # what an inspection reports, such as "onnxruntime 1.20.1 cpu int8"
        # One allocation for the engine's life, at fixed addresses, as a captured graph needs it:
        # each batch is copied into it, place by place, and its scores are copied out.
        self._batch = {t.name: np.zeros(t.shape, dtype=t.dtype) for t in spec.inputs()}
        self._results = {t.name: np.zeros(t.shape, dtype=t.dtype) for t in spec.outputs()}
        self._bound = {
            tensor_name: OrtValue.ortvalue_from_numpy(array, device, 0)
            for tensor_name, array in {**self._batch, **self._results}.items()
        }
        self._binding = session.io_binding()
        for tensor_name in self._batch:
            self._binding.bind_ortvalue_input(tensor_name, self._bound[tensor_name])
        for tensor_name in self._results:
            self._binding.bind_ortvalue_output(tensor_name, self._bound[tensor_name])

    @property
    def spec(self) -> ModelSpec:
        """The contract that the session's tensors were held against."""
        return self._spec

    def score(self, inputs: ModelInputs) -> Scores:
        """Score one sample; `inputs` as `edge.prepare.model_inputs` makes them (batch of 1)."""
        return self.score_batch([inputs])[0]

    def score_batch(self, several: Sequence[ModelInputs]) -> list[Scores]:
        """Score up to `spec.batch` samples in one run; empty places hold what lay there before.

        No operator of the models that we export mixes the samples of a batch, so what lies in an
        empty place changes no score; its own scores are not returned. One caller at a time.
        """
        self._copy_in(several)
        self._run()
        outputs = self._copied_out()
        return [scores_from_outputs(outputs, place) for place in range(len(several))]

    def split(self, several: Sequence[ModelInputs]) -> Split:
        """Run once more and say where the time went; onnxruntime waits inside its own run."""
        into_ms = _ms(lambda: self._copy_in(several))
        run_ms = _ms(self._run)
        return Split(into_ms + _ms(self._copied_out), run_ms, None)

    def warm_up(self) -> None:
        """Run on zeros, so that the first part is not the one that pays for allocation."""
        for _ in range(_WARM_UP_RUNS):
            self._run()

    def _copy_in(self, several: Sequence[ModelInputs]) -> None:
        place_in(self._batch, several)
        if self._device != "cpu":
            for name, array in self._batch.items():
                self._bound[name].update_inplace(array)

    def _run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def _copied_out(self) -> dict[str, NDArray[Any]]:
        if self._device == "cpu":
            return self._results
        return {name: self._bound[name].numpy() for name in self._results}

    def __enter__(self) -> OnnxEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # onnxruntime frees a session, and what is bound to it, with the last reference.
        self._binding = self._session = None
        self._bound = {}


def place_in(batch: Mapping[str, NDArray[Any]], several: Sequence[ModelInputs]) -> None:
    """Copy each sample's tensors into its place of the batch's."""
    for place, inputs in enumerate(several):
        for name, tensor in batch.items():
            one = inputs[name]
            assert one.dtype == tensor.dtype, (name, one.dtype)
            assert one.shape == (1, *tensor.shape[1:]), (name, one.shape)
            tensor[place] = one[0]


def engine_from_onnx(
    path: Path,
    spec: ModelSpec,
    provider: str = "cpu",
    *,
    threads: int | None = None,
    cuda_graph: bool = True,
) -> OnnxEngine:
    """Load an ONNX file, hold its tensors against `spec` and warm it up.

    `threads` is onnxruntime's number of threads inside an operator; None is one fewer than the
    cores this process may use, so that capture and publisher keep one. Raises MachineError when
    the provider is not in use after loading, InputError when the file is not the spec's model.
    """
    # Some builds of onnxruntime look up a host of its maker as soon as they are loaded; only this
    # variable keeps them from it. A plant's network must see no such call.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    assert provider in PROVIDERS, provider
    wanted = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise _not_in_use(provider, onnxruntime.get_available_providers())
    options = {} if provider == "cpu" else _cuda_options(path, spec, cuda_graph)
    session = _session_from(path, wanted, options, threads or default_threads())
    in_use = session.get_providers()
    if not in_use or in_use[0] != wanted:
        raise _not_in_use(provider, in_use)
    _refuse_other_options(session, wanted, options)
    refuse_mismatch(
        path, spec, _tensors_of(session.get_inputs()), _tensors_of(session.get_outputs())
    )
    name = f"onnxruntime {onnxruntime.__version__} {provider}"
    engine = OnnxEngine(session, spec, name, device=provider)
    try:
        engine.warm_up()
    except Exception as error:  # onnxruntime's own types share no base class but Exception
        raise _does_not_run(path, error) from None
    return engine


def default_threads() -> int:
    """One core fewer than this process may use, and at least one."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _cuda_options(path: Path, spec: ModelSpec, cuda_graph: bool) -> dict[str, str]:
    """Bound the arena: what an Orin's GPU takes is taken from everybody."""
    weights_bytes = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    frames_bytes = math.prod(spec.inputs()[0].shape)
    arena_bytes = _ARENA_FLOOR_BYTES + 2 * weights_bytes + _ARENA_FRAMES * frames_bytes
    return {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": str(arena_bytes),
        "enable_cuda_graph": "1" if cuda_graph else "0",
    }


def _session_from(path: Path, provider: str, given: dict[str, str], threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; what matters is raised
    # Idle threads must sleep: between two parts they would burn cores the camera needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider != PROVIDERS["cpu"]:
        # Else onnxruntime gives what the provider does not take to the CPU, node by node.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        # Without `enable_fallback=0` it prints to standard output, and tries the CPU by itself;
        # older versions do so all the same, and what they fell back to is refused by our caller.
        return onnxruntime.InferenceSession(
            str(path), options, providers=[provider], provider_options=[given], enable_fallback=0
        )
    except Exception as error:  # onnxruntime's own types share no base class but Exception
        raise InputError(
            where=path,
            expected="an ONNX file that onnxruntime can load",
            found=_first_line(error),
            do="Export it again; `edge verify` tells whether the bundle is whole."
            + _OR_WITHOUT_GRAPH * (given.get("enable_cuda_graph") == "1"),
        ) from None


def _refuse_other_options(session: Any, provider: str, given: dict[str, str]) -> None:
    """Read back what the provider really took. Raises MachineError where it took another value."""
    taken = session.get_provider_options().get(provider, {})
    for name, value in given.items():
        if str(taken.get(name)) != value:
            raise MachineError(
                where=f"onnxruntime's {provider}",
                expected=f"{name} = {value}",
                found=f"{name} = {taken.get(name)}",
                do="Install an onnxruntime that knows the option, or run with cuda_graph = false.",
            )


def _tensors_of(nodes: list[Any]) -> list[TensorSpec]:
    return [
        TensorSpec(node.name, _NUMPY_NAMES.get(node.type, node.type), tuple(node.shape))
        for node in nodes
    ]


def _ms(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return (time.perf_counter() - started_s) * 1e3


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def _does_not_run(path: Path, error: Exception) -> InputError:
    return InputError(
        where=path,
        expected="a model that runs",
        found=_first_line(error),
        do="Export it again; where memory is short, stop other programs first.",
    )


def _not_in_use(provider: str, available: list[str]) -> MachineError:
    known = [name for name, full in PROVIDERS.items() if full in available]
    return MachineError(
        where=f"provider '{provider}'",
        expected=f"onnxruntime to run on {PROVIDERS[provider]}",
        found=f"only {', '.join(known) or 'none'} here",
        do="Install the onnxruntime build for it, or ask for one of those by name.",
    )
