"""What must live without torch, onnx or a GPU does: held by importing it where those are absent."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOST_ONLY = ("torch", "onnx", "onnxscript", "torchao", "scipy", "sklearn", "skimage", "pyarrow")


def modules_of(package: str) -> list[str]:
    """Every module of a package, `edge.cli` left out: it may know all."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__init__.py" and "cli" not in path.parts
    ]


def import_without(modules: list[str], absent: tuple[str, ...]) -> str:
    code = (
        "import importlib, sys\n"
        f"for name in {absent!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    return result.stderr


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("edge", (*HOST_ONLY, "onnxruntime", "tensorrt", "paho", "jtop", "rich", "distill")),
        ("device_agents", (*HOST_ONLY, "tensorrt", "jtop", "distill", "export")),
        ("distill", ("onnx", "onnxruntime", "tensorrt", "paho", "export", "device_agents")),
        ("export", ("tensorrt", "paho", "device_agents")),
    ],
)
def test_package_imports_without_what_it_must_not_need(package, absent):
    modules = modules_of(package)
    assert len(modules) > 3
    assert import_without(modules, absent) == ""


def test_messages_and_topics_need_only_msgspec():
    code = (
        "import sys\n"
        "import msgspec\n"
        "before = set(sys.modules)\n"
        "import edge.messages, edge.topics\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "sys.exit(', '.join(new - {'edge', 'msgspec'} - set(sys.stdlib_module_names)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_package_files_hold_a_docstring_and_nothing_else():
    for package in ("edge", "distill", "export", "device_agents"):
        for path in (ROOT / package).rglob("__init__.py"):
            text = path.read_text()
            assert text.startswith('"""'), path
            assert text.rstrip().endswith('"""'), path
            assert text.count('"""') == 2, path
