"""The builder's own process: one ONNX file in, one plan out, progress as JSON lines.

A build takes minutes and gigabytes, in native code. In a process of its own a crash, or the
kernel's killer on an 8 GB board, is an answer and takes nothing down; what TensorRT prints stays
there too. It is told what to do by one JSON object, and imports what the Orin has: no torch, no
onnx. The network is strongly typed: the precision is what the file says, and no flag changes it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.tensorrt_library import load_tensorrt

if TYPE_CHECKING:
    import tensorrt as trt

_ERRORS = 20  # that are passed on; a broken file can give thousands
_STEP_EVERY_S = 0.1


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Build, and return what came of it: `outcome` is built, refused or not loaded."""
    try:
        trt_here = load_tensorrt(request["flavour"])
        logger = _logger(trt_here)
        builder: trt.Builder = trt_here.Builder(logger)
    except (ImportError, OSError, TypeError, RuntimeError) as error:
        return {"outcome": "not loaded", "reason": str(error)}
    core = request["dla_core"]
    if core is not None and core >= builder.num_DLA_cores:
        return {"outcome": "no dla", "cores": builder.num_DLA_cores}
    ahead, known = request["compute_capability"], _compute_capabilities(trt_here)
    if ahead is not None and ahead not in known:
        return {"outcome": "unknown gpu", "known": sorted(known)}
    network = builder.create_network(_flags(trt_here))
    parser: trt.OnnxParser = trt_here.OnnxParser(network, logger)
    # From the path and not from bytes, so that weights beside the file are found too.
    if not parser.parse_from_file(request["onnx"]):
        return {"outcome": "refused", "errors": _parser_errors(parser, logger)}
    config = _config(trt_here, builder, request)
    kept = request["timing_cache"] and Path(request["timing_cache"])
    cached_bytes = _load_timing_cache(config, kept) if kept else 0
    started_s = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"outcome": "refused", "errors": [{"node": "", "text": _last_words(logger)}]}
    with Path(request["out"]).open("wb") as file:
        file.write(bytes(request["skip"]))
        file.write(plan)
    cache_bytes, cache_problem = _save_timing_cache(config, kept) if kept else (0, "")
    return {
        "outcome": "built",
        "tensorrt": trt_here.__version__,
        "seconds": round(time.monotonic() - started_s, 2),
        "cached_bytes": cached_bytes,
        "cache_bytes": cache_bytes,
        "cache_problem": cache_problem,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }


def _flags(trt_here: Any) -> int:
    """Strongly typed, where that is still to be asked for: from TensorRT 11 it always is."""
    flag = getattr(trt_here.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _config(trt_here: Any, builder: trt.Builder, request: dict[str, Any]) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt_here.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    config.progress_monitor = _monitor(trt_here)
    if request["dla_core"] is not None:
        config.default_device_type = trt_here.DeviceType.DLA
        config.DLA_core = request["dla_core"]
        config.set_flag(trt_here.BuilderFlag.GPU_FALLBACK)
    if request["compute_capability"] is not None:
        known = _compute_capabilities(trt_here)
        _build_ahead(config, known[request["compute_capability"]])
    return config


def _build_ahead(config: Any, compute_capability: Any) -> None:
    """Build for a GPU that is not here: TensorRT-RTX only, and no part of TensorRT's own API."""
    config.num_compute_capabilities = 1
    config.set_compute_capability(compute_capability, 0)


def _compute_capabilities(trt_here: Any) -> dict[str, Any]:
    """Return those that can be built for without the GPU, "8.6" and so on."""
    known = getattr(trt_here, "ComputeCapability", None)
    names = [name for name in dir(known) if re.fullmatch(r"SM\d+", name)]
    return {f"{name[2:-1]}.{name[-1]}": getattr(known, name) for name in names}


def _load_timing_cache(config: trt.IBuilderConfig, path: Path) -> int:
    """Give the builder what it measured before; a cache of another GPU or version is left out."""
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return len(known)
    empty = config.create_timing_cache(b"")
    if empty is not None:
        config.set_timing_cache(empty, ignore_mismatch=False)
    return 0


def _save_timing_cache(config: trt.IBuilderConfig, path: Path) -> tuple[int, str]:
    """Keep what was measured; return its size, and why not: the plan is good without it."""
    cache = config.get_timing_cache()
    if cache is None:
        return 0, ""
    content = bytes(cache.serialize())
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        return 0, error.strerror or str(error)
    return len(content), ""


def _monitor(trt_here: Any) -> Any:
    class Monitor(trt_here.IProgressMonitor):  # type: ignore[misc] # exists where TensorRT does
        def __init__(self) -> None:
            trt_here.IProgressMonitor.__init__(self)
            self.said_s = 0.0
            self.asked_by = os.getppid()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            _say({"phase": phase, "parent": parent, "steps": steps})

        def step_complete(self, phase: str, step: int) -> bool:
            now_s = time.monotonic()
            if now_s - self.said_s > _STEP_EVERY_S:  # a phase may have thousands of steps
                self.said_s = now_s
                _say({"phase": phase, "step": step + 1})
            return os.getppid() == self.asked_by  # who asked is gone: give up

        def phase_finish(self, phase: str) -> None:
            _say({"phase": phase, "ended": True})

    return Monitor()


def _logger(trt_here: Any) -> Any:
    class Log(trt_here.ILogger):  # type: ignore[misc] # the base exists only where TensorRT does
        def __init__(self) -> None:
            trt_here.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt_here.ILogger.ERROR, trt_here.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _parser_errors(parser: trt.OnnxParser, logger: Any) -> list[dict[str, str]]:
    errors = []
    for number in range(min(parser.num_errors, _ERRORS)):
        error = parser.get_error(number)
        what = f"{_text(error.node_operator)} {_text(error.node_name)}".strip()
        errors.append({"node": what, "text": _text(error.desc).strip()[:300]})
    return errors or [{"node": "", "text": _last_words(logger)}]


def _text(say: Callable[[], str]) -> str:
    """Return what TensorRT says; names in a broken file need not be text."""
    try:
        return say()
    except UnicodeDecodeError as error:
        return repr(error.object)[:100]


def _last_words(logger: Any) -> str:
    return " ".join(logger.errors)[-600:] or "the builder gave no plan and no reason"


def _say(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    _say(main(json.loads(sys.argv[1])))
