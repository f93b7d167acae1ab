"""What we call of TensorRT and CUDA exists in the real packages, from 10.13 to 11.4 and in RTX.

The calls are found in our sources: every attribute of a name that is annotated with one of
TensorRT's classes (`builder: trt.Builder`, or a method that returns one), of `trt_here` (the
module) and of `rt` (CUDA's runtime). They are looked up in

    tensorrt-lean-*        TensorRT 11.4's runtime, imported; it needs no GPU
    tensorrt_rtx_bindings  TensorRT-RTX, imported: the builder too
    tensorrt-stubs         the types of TensorRT 10.13, read as text; mypy reads them too
    cuda-bindings          imported
"""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from gpu_stand_in import Cudart
from readable_stubs import mended_stubs

from export.tensorrt_library import flavours_here, load_tensorrt

ROOT = Path(__file__).resolve().parent.parent
RUNTIME_SOURCES = ("device_agents/engine/on_tensorrt.py",)
BUILD_SOURCES = ("export/builder_process.py",)
CUDA_SOURCES = tuple(
    f"device_agents/engine/{name}.py" for name in ("gpu", "buffers", "on_tensorrt")
)
# What a method of a class of ours-to-know returns, where our sources do not annotate it again.
RETURNS = {
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("IBuilderConfig", "get_timing_cache"): "ITimingCache",
    ("OnnxParser", "get_error"): "ParserError",
}
ONLY_RTX = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
ASKED_FIRST = {"ComputeCapability", "STRONGLY_TYPED"}  # through getattr with a default
NOT_IN_LEAN = {"Builder", "OnnxParser"}  # a lean runtime builds nothing


def calls_of(sources: tuple[str, ...]) -> dict[str, set[str]]:
    """Attributes by class ("" for the module itself)."""
    found: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        tree = ast.parse((ROOT / source).read_text())
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                _look_into(function, _own_attributes(tree), found)
    return found


def _own_attributes(tree: ast.AST) -> dict[str, str]:
    """`self._context: trt.IExecutionContext | None = ...` gives `self._context` its class."""
    return {
        ast.unparse(node.target): name
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and (name := _class_in(node.annotation))
    }


def _class_in(annotation: ast.expr | None) -> str:
    for node in ast.walk(annotation) if annotation is not None else ():
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "trt":
            return node.attr
    return ""


def _look_into(function: ast.FunctionDef, known: dict[str, str], found: dict[str, set[str]]):
    classes = dict(known)
    for argument in function.args.args:
        if name := _class_in(argument.annotation):
            classes[argument.arg] = name
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            called = node.value.func
            if isinstance(called, ast.Attribute):
                owner = classes.get(ast.unparse(called.value), "")
                if returned := RETURNS.get((owner, called.attr)):
                    classes[ast.unparse(node.targets[0])] = returned
    for node in ast.walk(function):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        if owner == "trt_here":
            found[""].add(node.attr)
        elif owner.startswith("trt_here."):
            found[owner.removeprefix("trt_here.")].add(node.attr)
        elif owner in classes:
            found[classes[owner]].add(node.attr)


def missing_in(module: object, calls: dict[str, set[str]], left_out: set[str]) -> list[str]:
    missing = []
    for kind, names in calls.items():
        owner = module
        for step in filter(None, kind.split(".")):
            owner = getattr(owner, step, None)
        if kind.split(".")[0] in left_out:
            continue
        missing += [
            f"{kind or 'module'}.{name}"
            for name in names - left_out
            if owner is None or not hasattr(owner, name)
        ]
    return sorted(missing)


def imported(name: str) -> object:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        pytest.skip(f"{name} is NOT here, so nothing was held against it: {error}")


def test_the_calls_are_found_in_our_sources():
    """Else the tests below would pass by looking at nothing."""
    runtime, build = calls_of(RUNTIME_SOURCES), calls_of(BUILD_SOURCES)
    assert {"ILogger", "Runtime", "TensorIOMode", "nptype", "__version__"} <= runtime[""]
    assert {"execute_async_v3", "set_tensor_address"} <= runtime["IExecutionContext"]
    assert {"deserialize_cuda_engine", "DLA_core"} <= runtime["Runtime"]
    assert {"get_tensor_mode", "device_memory_size_v2"} <= runtime["ICudaEngine"]
    assert {"build_serialized_network", "num_DLA_cores"} <= build["Builder"]
    assert {"progress_monitor", "set_timing_cache"} <= build["IBuilderConfig"]
    assert {"parse_from_file", "num_errors"} <= build["OnnxParser"]
    assert {"serialize"} <= build["ITimingCache"]
    assert {"node_name", "desc"} <= build["ParserError"]
    assert {"GPU_FALLBACK"} <= build["BuilderFlag"]


def test_what_the_engine_calls_exists_in_tensorrt_11():
    lean = imported("tensorrt_lean_bindings")
    assert lean.__version__.startswith("11.")
    assert missing_in(lean, calls_of(RUNTIME_SOURCES), NOT_IN_LEAN) == []


def test_what_engine_and_builder_call_exists_in_tensorrt_rtx():
    if "tensorrt_rtx" not in flavours_here():
        pytest.skip("TensorRT-RTX is NOT here, so nothing was held against it")
    rtx = load_tensorrt("tensorrt_rtx")
    assert missing_in(rtx, calls_of(RUNTIME_SOURCES + BUILD_SOURCES), set()) == []


def test_what_engine_and_builder_call_exists_in_the_stubs_of_tensorrt_10(tmp_path):
    names = {
        node.name: {
            *(one.name for one in node.body if isinstance(one, ast.FunctionDef)),
            *(
                one.target.id
                for one in node.body
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
            ),
        }
        for node in ast.parse(mended_stubs(tmp_path).read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    calls = calls_of(RUNTIME_SOURCES + BUILD_SOURCES)
    module = calls.pop("")
    assert module - set(names) - {"__version__", "nptype"} - ONLY_RTX == set()
    for kind, wanted in calls.items():
        dunder = {name for name in wanted if name.startswith("__")}
        assert wanted - dunder - names[kind] - ONLY_RTX == set(), kind


def type_errors(stubs: Path, *sources: str) -> list[str]:
    """What mypy says of `sources` with TensorRT 10.13's types, the stubs' own faults apart."""
    # The stubs say that nothing is ever None, which the real calls do not keep.
    flags = ["--no-warn-unreachable", "--no-error-summary", "--cache-dir", str(stubs / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *flags, *sources],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "MYPYPATH": str(stubs)},
    )
    assert done.stdout, done.stderr
    return [
        line for line in done.stdout.splitlines() if "stubs" not in line and ": note:" not in line
    ]


def test_engine_and_builder_are_typed_as_tensorrt_10_types_them(tmp_path):
    mended_stubs(tmp_path / "stubs")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import tensorrt\ndef f(b: tensorrt.Builder) -> None:\n    b.no_such_thing()\n"
    )
    errors = type_errors(tmp_path / "stubs", *RUNTIME_SOURCES, *BUILD_SOURCES, str(wrong))
    assert len(errors) == 1, errors
    assert "no_such_thing" in errors[0], "the types were read: what is wrong on purpose is found"


def test_no_precision_flag_and_no_calibrator_is_ever_named():
    """TensorRT 11 removed them, and a strongly typed network takes none."""
    gone = {"FP16", "INT8", "FP8", "BF16", "int8_calibrator", "OBEY_PRECISION_CONSTRAINTS"}
    for source in (*RUNTIME_SOURCES, *BUILD_SOURCES, "export/build.py"):
        tree = ast.parse((ROOT / source).read_text())
        named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not named & gone, source


def cuda_calls() -> set[str]:
    """`rt.cudaMalloc`, `rt.cudaMemcpyKind.cudaMemcpyHostToDevice` and so on, as dotted names."""
    names = set()
    for source in CUDA_SOURCES:
        for node in ast.walk(ast.parse((ROOT / source).read_text())):
            if isinstance(node, ast.Attribute):
                owner, _, rest = ast.unparse(node).partition(".cuda")
                if owner in ("rt", "self._rt") and rest:
                    names.add(f"cuda{rest}")
    return names


def test_what_we_call_of_cuda_exists():
    runtime = imported("cuda.bindings.runtime")
    calls = cuda_calls()
    assert len(calls) > 20
    for name in calls:
        owner = runtime
        for step in name.split("."):
            assert hasattr(owner, step), name
            owner = getattr(owner, step)


def test_stand_in_offers_nothing_that_cuda_does_not_have():
    runtime = imported("cuda.bindings.runtime")
    offered = {name for name in vars(Cudart) if name.startswith("cuda")}
    assert len(offered) > 20
    assert not [name for name in offered if not hasattr(runtime, name)]
    used = {name.split(".")[0] for name in cuda_calls()}
    assert used <= offered, "the stand-in lacks what the engine calls"
