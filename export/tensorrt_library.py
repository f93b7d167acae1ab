"""Which of NVIDIA's builders this machine has, and how each is loaded.

tensorrt       JetPack's, or the package of that name; it builds for the GPU that is here
tensorrt_rtx   TensorRT-RTX; it also builds ahead of time, on a machine without a GPU. Where its own
               wheel is not there, its libraries come from the wheel of an onnxruntime plugin.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from edge.plan import FLAVOURS

_RTX_BINDINGS = "tensorrt_rtx_bindings"
_RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"  # the wheel that carries the shared libraries too
_RTX_LIBRARIES = ("libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")


def flavours_here() -> tuple[str, ...]:
    """Return the flavours that are installed; whether they load, only loading tells."""
    found = [flavour for flavour in FLAVOURS if _has(flavour)]
    if "tensorrt_rtx" not in found and _has(_RTX_BINDINGS) and _has(_RTX_PLUGIN):
        found.append("tensorrt_rtx")
    return tuple(found)


def load_tensorrt(flavour: str) -> Any:
    """Import a flavour's Python module. Raises ImportError or OSError where it does not load."""
    if _has(flavour):
        return importlib.import_module(flavour)
    assert flavour == "tensorrt_rtx", flavour
    plugin = importlib.util.find_spec(_RTX_PLUGIN)
    if plugin is None or plugin.origin is None:
        raise ImportError(f"no package {flavour}, and none that carries its libraries")
    for pattern in _RTX_LIBRARIES:  # the bindings expect to find them loaded
        libraries = sorted(Path(plugin.origin).parent.glob(pattern))
        if not libraries:
            raise ImportError(f"no {pattern} in {plugin.origin}")
        ctypes.CDLL(str(libraries[0]), ctypes.RTLD_GLOBAL)
    return importlib.import_module(_RTX_BINDINGS)


def _has(module: str) -> bool:
    """Tell a package from the bare folder that type stubs leave under its name."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None
