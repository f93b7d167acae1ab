"""What NVIDIA's own parser and builder say of an ONNX file, on a machine without a GPU.

TensorRT-RTX builds ahead of time for SM 8.6. That is not the Orin's compiler (SM 8.7, another
TensorRT), so "passed" means that NVIDIA's parser and builder take this onnx_graph, no more. The
builder runs in a process of its own: a crash in native code must not take the export down, and
its thousands of log lines stay there; only its list of compiled layers comes back.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from edge.bundle import CompileCheck, CompiledLayers
from edge.errors import AnswerIsNo
from export.layer_report import Kernel, compiled_layers, kernels_in

BUILDER_PACKAGES = ("tensorrt-rtx-cu13-bindings", "onnxruntime-ep-nv-tensorrt-rtx-cu13")
_BINDINGS = "tensorrt_rtx_bindings"
_LIBRARIES = "onnxruntime_ep_nv_tensorrt_rtx"  # the wheel that carries the shared libraries
_LIBRARY_PATTERNS = ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")
_LIMIT_S = 1800  # a graph of 600M parameters takes under a minute; beyond this it hangs

# What to do about a refused node, by its operator.
_REMEDIES = {
    "ScatterElements": "Express it as a product with a one-hot matrix, which the builder takes.",
    "Transpose": "Cast uint8 pixels to float before anything else touches them.",
    "DequantizeLinear": "Keep biases unquantised: TensorRT dequantises int8 only, never int32.",
}
_OTHER_REMEDY = "Replace the operator in the student by those that TensorRT's parser takes."


def missing_packages() -> tuple[str, ...]:
    """Return the packages that a compile check needs and this machine has not."""
    modules = dict(zip(BUILDER_PACKAGES, (_BINDINGS, _LIBRARIES), strict=True))
    return tuple(name for name, module in modules.items() if not importlib.util.find_spec(module))


def compile_check(path: Path, int8_nodes: Sequence[str] = ()) -> CompileCheck:
    """Have NVIDIA's builder build `path` ahead of time.

    `int8_nodes` names the nodes that are meant to compute on int8; those that the builder compiled
    otherwise are named in the remark. Where the builder is not installed or does not load, the
    status is "not run" and the remark says why. Raises AnswerIsNo when it is there and refuses.
    """
    missing = missing_packages()
    if missing:
        return _not_run(path, f"not installed: {', '.join(missing)} (part of the extra 'host')")
    report = _report_from_child(path)
    if report["outcome"] == "not loaded":
        return _not_run(path, f"installed but does not load: {report['reason']}")
    if report["outcome"] == "refused":
        raise _refused(path, report["errors"])
    kernels = kernels_in(report["layers"])
    known = bool(kernels)  # another version may report otherwise: then say nothing, not zero
    compiled = _compiled(path, kernels, int8_nodes) if known else None
    return CompileCheck(
        file=path.name,
        status="passed",
        builder=report["builder"],
        remark=_remark(int8_nodes, compiled),
        seconds=round(report["seconds"], 2),
        plan_bytes=report["plan_bytes"],
        int8_layers=sum(kernel.computes_int8 for kernel in kernels) if known else None,
        layers=len(kernels) if known else None,
        compiled=compiled,
    )


def _compiled(path: Path, kernels: list[Kernel], int8_nodes: Sequence[str]) -> CompiledLayers:
    return compiled_layers(onnx.load(path, load_external_data=False), kernels, int8_nodes)


def _remark(meant: Sequence[str], compiled: CompiledLayers | None) -> str:
    accepted = "NVIDIA's parser and builder take this graph; the Orin builds its own plan"
    if not meant or (compiled and not compiled.not_int8):
        return accepted
    if compiled is None:
        return f"{accepted}; which products are int8 is not known: its report is of another form"
    return f"{accepted}; quantised, but not compiled to int8 here: {', '.join(compiled.not_int8)}"


def _report_from_child(path: Path) -> dict[str, Any]:
    """Run this file as a program of its own and return the JSON line it ends with."""
    command = [sys.executable, "-m", "export.compile_check", str(path.absolute())]
    # Run from where our packages lie, so that no folder named `export` of a person's is imported.
    home = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            command,
            cwd=home,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _broke_down(path, f"no end after {_LIMIT_S} s") from None
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode != 0 or not last.startswith("{"):
        said = (done.stderr.strip() or "nothing said").rpartition("\n")[2]
        raise _broke_down(path, f"exit status {done.returncode} ({said[:300]})")
    report: dict[str, Any] = json.loads(last)
    return report


def _not_run(path: Path, remark: str) -> CompileCheck:
    return CompileCheck(file=path.name, status="not run", builder="TensorRT-RTX", remark=remark)


def _broke_down(path: Path, found: str) -> AnswerIsNo:
    return AnswerIsNo(
        where=path.name,
        expected="NVIDIA's builder to build this graph or to say why not",
        found=found,
        do="Look for what is unusual in the student; to export without this proof, uninstall "
        f"{BUILDER_PACKAGES[0]}.",
    )


def _refused(path: Path, errors: list[dict[str, str]]) -> AnswerIsNo:
    nodes = "; ".join(
        f"{error['operator'] or 'graph'} '{error['node'] or '(unnamed)'}': {error['text']}"
        for error in errors
    )
    remedies = dict.fromkeys(_REMEDIES.get(e["operator"], _OTHER_REMEDY) for e in errors)
    return AnswerIsNo(
        where=path.name,
        expected="a graph that NVIDIA's parser and builder take",
        found=f"refused nodes: {nodes}",
        do=" ".join(remedies),
    )


# ---- From here on: what runs in the builder's own process. -------------------------------------


def _child(path: Path) -> dict[str, Any]:
    try:
        trt = _tensorrt()
    except (OSError, ImportError, IndexError) as error:
        return {"outcome": "not loaded", "reason": str(error)}
    log = _logger(trt)
    builder = trt.Builder(log)
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, log)
    # From the path and not from bytes, so that weights beside the file would be found too.
    if not parser.parse_from_file(str(path)):
        return {"outcome": "refused", "errors": _parser_errors(parser, log)}
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    start = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        text = " ".join(log.errors)[:600] or "the builder gave no plan and no reason"
        return {"outcome": "refused", "errors": [{"node": "", "operator": "", "text": text}]}
    return {
        "outcome": "passed",
        "builder": f"TensorRT-RTX {trt.__version__}, SM 8.6, ahead of time",
        "seconds": time.monotonic() - start,
        "plan_bytes": plan.nbytes,
        "layers": log.layer_report,
    }


def _tensorrt() -> Any:
    """Load the builder's shared libraries, then its bindings, which expect to find them loaded."""
    spec = importlib.util.find_spec(_LIBRARIES)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    for pattern in _LIBRARY_PATTERNS:
        ctypes.CDLL(str(sorted(folder.glob(pattern))[0]), ctypes.RTLD_GLOBAL)
    return importlib.import_module(_BINDINGS)


def _logger(trt: Any) -> Any:
    """Make a logger that keeps errors and the layer report, and drops all else."""

    class Log(trt.ILogger):  # type: ignore[misc] # the base exists only where TensorRT does
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layer_report = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layer_report = message

    return Log()


def _parser_errors(parser: Any, log: Any) -> list[dict[str, str]]:
    """Return node, operator and text of each error, the first sentence that says something."""
    errors = []
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        lines = [
            line for line in (*error.desc().splitlines(), *log.errors) if _says_something(line)
        ]
        errors.append(
            {
                "node": error.node_name(),
                "operator": error.node_operator() or _operator_in(log.errors),
                "text": _in_short(lines[0]) if lines else "an operator the parser does not know",
            }
        )
    return errors


def _in_short(line: str) -> str:
    """Drop what TensorRT says of its own source: the function before, the file after."""
    inner = re.search(r"Error Code \d+: [\w ]+\((.*)$", line)
    text = inner.group(1) if inner else line
    return text.partition(" In check")[0].partition(" (In ")[0].rstrip(".)")[:300]


def _says_something(line: str) -> bool:
    """Tell an error's reason from what stands around it (a missing CUDA driver is harmless)."""
    noise = ("Invalid Node", "catchCudaError", "ModelImporter.cpp", "false")
    return bool(line.strip()) and not any(word in line for word in noise)


def _operator_in(errors: list[str]) -> str:
    """Find the operator where the parser names only its own function, `importScatterElements`."""
    found = re.search(r"In function (?:import|check)(\w+)", " ".join(errors))
    return found.group(1) if found else ""


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(_child(Path(sys.argv[1]))) + "\n")
