"""The engine: a bundle's ONNX file loaded by onnxruntime, held against the model's spec.

What was asked for is what runs. A provider that is absent, or that onnxruntime drops silently, is
an error: a verdict that comes ten times later from a processor nobody chose is a wrong answer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edge.bundle import FP32_FILE, INT8_FILE, Bundle
from edge.errors import InputError, MachineError, nearest_hint
from edge.model_spec import ModelSpec, TensorSpec
from edge.scorer import ModelInputs, Scores, scores_from_outputs

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
FORMS = {"int8": INT8_FILE, "fp32": FP32_FILE}
_WARM_UP_RUNS = 2  # the first run allocates, the second runs as all later ones do
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
    """A `Scorer` on onnxruntime. Make it with `engine_from_bundle` or `engine_from_onnx`."""

    def __init__(self, session: Any, spec: ModelSpec, name: str) -> None:
        self._session = session
        self._spec = spec
        self._output_names = [tensor.name for tensor in spec.outputs()]
        # One allocation for the engine's life: each batch is copied into it, place by place.
        self._batch = {t.name: np.zeros(t.shape, dtype=t.dtype) for t in spec.inputs()}
        self.name = name  # what an inspection reports, such as "onnxruntime 1.20.1 cpu int8"

    @property
    def spec(self) -> ModelSpec:
        """The contract that the session's tensors were held against."""
        return self._spec

    def score(self, inputs: ModelInputs) -> Scores:
        """Score one sample; `inputs` as `edge.prepare.model_inputs` makes them (batch of 1)."""
        if self._spec.batch > 1:
            return self.score_batch([inputs])[0]
        return scores_from_outputs(self._run(inputs))

    def score_batch(self, several: Sequence[ModelInputs]) -> list[Scores]:
        """Score up to `spec.batch` samples in one run; empty places hold what lay there before.

        No operator of the models that we export mixes the samples of a batch, so what lies in an
        empty place changes no score; its own scores are not returned. One caller at a time.
        """
        assert 1 <= len(several) <= self._spec.batch, (len(several), self._spec.batch)
        for place, inputs in enumerate(several):
            for name, tensor in self._batch.items():
                tensor[place] = inputs[name][0]
        outputs = self._run(self._batch)
        return [scores_from_outputs(outputs, place) for place in range(len(several))]

    def warm_up(self) -> None:
        """Run on zeros, so that the first part is not the one that pays for allocation."""
        for _ in range(_WARM_UP_RUNS):
            self._run(self._batch)

    def _run(self, inputs: ModelInputs) -> dict[str, Any]:
        outputs = self._session.run(self._output_names, dict(inputs))
        return dict(zip(self._output_names, outputs, strict=True))

    def __enter__(self) -> OnnxEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session = None  # onnxruntime frees a session with its last reference


def engine_from_bundle(
    bundle: Bundle, provider: str = "cpu", *, form: str = "int8", threads: int | None = None
) -> OnnxEngine:
    """Load the bundle's ONNX file of `form`, its digest checked first. See `engine_from_onnx`."""
    if form not in FORMS:
        raise _unknown("model form", form, FORMS)
    path = bundle.path_of(FORMS[form])
    engine = engine_from_onnx(path, bundle.manifest.spec, provider, threads=threads)
    engine.name = f"{engine.name} {form}"
    return engine


def engine_from_onnx(
    path: Path, spec: ModelSpec, provider: str = "cpu", *, threads: int | None = None
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

    wanted = _provider_name(provider, onnxruntime.get_available_providers())
    session = _session_from(path, wanted, threads or default_threads())
    in_use = session.get_providers()
    if not in_use or in_use[0] != wanted:
        raise _not_in_use(provider, in_use)
    _refuse_mismatch(path, "input", spec.inputs(), session.get_inputs())
    _refuse_mismatch(path, "output", spec.outputs(), session.get_outputs())
    engine = OnnxEngine(session, spec, f"onnxruntime {onnxruntime.__version__} {provider}")
    engine.warm_up()
    return engine


def default_threads() -> int:
    """One core fewer than this process may use, and at least one."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _provider_name(provider: str, available: list[str]) -> str:
    if provider not in PROVIDERS:
        raise _unknown("provider", provider, PROVIDERS)
    if PROVIDERS[provider] not in available:
        raise _not_in_use(provider, available)
    return PROVIDERS[provider]


def _session_from(path: Path, provider: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; what matters is raised
    # Idle threads must sleep: between two parts they would burn cores the camera needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's own types share no base class but Exception
        raise InputError(
            where=path,
            expected="an ONNX file that onnxruntime can load",
            found=str(error).splitlines()[0][:300] if str(error) else type(error).__name__,
            do="Export it again; `edge verify` tells whether the bundle is whole.",
        ) from None
    session.disable_fallback()
    return session


def _refuse_mismatch(
    path: Path, side: str, expected: tuple[TensorSpec, ...], found: list[Any]
) -> None:
    """Raise InputError naming the first tensor that differs between the spec and the file."""
    in_file = {
        node.name: TensorSpec(node.name, _NUMPY_NAMES.get(node.type, node.type), tuple(node.shape))
        for node in found
    }
    for wanted in expected:
        got = in_file.pop(wanted.name, None)
        if got != wanted:
            raise _mismatch(path, f"{side} '{wanted.name}' {_form(wanted)}", _form(got))
    for name, extra in in_file.items():
        raise _mismatch(path, f"no other {side} than the spec's", f"'{name}' {_form(extra)}")


def _form(tensor: TensorSpec | None) -> str:
    return "no such tensor" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _mismatch(path: Path, expected: str, found: str) -> InputError:
    return InputError(
        where=path,
        expected=expected,
        found=found,
        do="The file and the spec are of different models: export the bundle again.",
    )


def _not_in_use(provider: str, available: list[str]) -> MachineError:
    known = [name for name, full in PROVIDERS.items() if full in available]
    return MachineError(
        where=f"provider '{provider}'",
        expected=f"onnxruntime to run on {PROVIDERS[provider]}",
        found=f"only {', '.join(known) or 'none'} here",
        do="Install the onnxruntime build for it, or ask for one of those by name.",
    )


def _unknown(what: str, given: str, known: dict[str, str]) -> InputError:
    return InputError(
        where=what,
        expected=f"one of {', '.join(known)}",
        found=f"'{given}'",
        do=nearest_hint(given, known),
    )
