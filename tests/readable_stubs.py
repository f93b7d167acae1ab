"""tensorrt-stubs (TensorRT 10.13's types) made readable: as published, no parser takes them.

They are generated, and a few lines are no Python (a parameter called `in`, one without a default
after one with). mypy says nothing of that: it takes what it cannot read for `Any`.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
from pathlib import Path

import pytest

PACKAGES = ("tensorrt", "tensorrt_bindings")
_MOST_LINES = 50


def stubs_here() -> Path:
    """Return the folder that the stubs lie in; skip where they are not installed."""
    spec = importlib.util.find_spec("tensorrt_stubs")
    if spec is None or spec.origin is None:
        pytest.skip("tensorrt-stubs is NOT here (pip install --no-deps tensorrt-stubs)")
    return Path(spec.origin).parent.parent


def mended_stubs(folder: Path) -> Path:
    """Copy the stubs into `folder` with their broken lines mended; return the file of types."""
    for package in PACKAGES:
        shutil.copytree(stubs_here() / package, folder / package)
    path = folder / "tensorrt_bindings" / "tensorrt.pyi"
    text = path.read_text()
    for _ in range(_MOST_LINES):
        try:
            ast.parse(text)
        except SyntaxError as error:
            lines = text.split("\n")
            lines[error.lineno - 1] = _mended(lines[error.lineno - 1])
            text = "\n".join(lines)
        else:
            path.write_text(text)
            return path
    raise AssertionError(f"more than {_MOST_LINES} lines of tensorrt-stubs are no Python")


def _mended(line: str) -> str:
    without_keyword = re.sub(r"\bin: ", "in_: ", line)
    return without_keyword if without_keyword != line else line.replace(" = None", "")
