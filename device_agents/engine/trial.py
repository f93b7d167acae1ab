"""A file of unknown origin is loaded in a process of its own first, with bounded memory and time.

Digests come first and keep accidents out. They do not keep out a bundle that somebody made to do
harm: a parser is native code, and a model of a kilobyte can ask for all of the machine's memory.
Such a file ends the trial's process, and is then an error like any other.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import msgspec

from device_agents.engine.on_onnxruntime import engine_from_onnx
from edge.errors import EdgeError, InputError, signal_name
from edge.model_spec import ModelSpec

LIMIT_S = 600.0
_FLOOR_BYTES = 4 << 30  # of addresses: Python, onnxruntime and its threads take about half of it
_WEIGHTS_TIMES = 8


def try_onnx(path: Path, spec: ModelSpec, *, limit_s: float = LIMIT_S) -> None:
    """Load and run `path` once, on the CPU, elsewhere. Raises InputError where that goes wrong."""
    request = [str(path.absolute()), msgspec.json.encode(spec).decode(), str(math.ceil(limit_s))]
    command = [sys.executable, "-m", "device_agents.engine.trial", *request]
    # Run from where our packages lie, so that no folder of that name of a person's is imported.
    home = Path(__file__).resolve().parent.parent.parent
    try:
        done = subprocess.run(
            command,
            cwd=home,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _harmful(path, f"no end after {limit_s:g} s") from None
    if done.returncode == 0:
        return
    if done.returncode == InputError.exit_status:
        problem = json.loads(done.stdout.strip().rpartition("\n")[2])
        raise InputError(where=path, **problem)
    if done.returncode < 0:
        raise _harmful(path, f"it died of {signal_name(-done.returncode)}")
    raise _harmful(path, f"it broke down: {done.stderr.strip().rpartition(chr(10))[2][:300]}")


def _harmful(path: Path, found: str) -> InputError:
    return InputError(
        where=path,
        expected="an ONNX file that onnxruntime survives",
        found=found,
        do="Do not use it; copy the bundle again from where it was exported.",
    )


# ---- From here on: what runs in the trial's own process. ---------------------------------------


def _bound(path: Path, limit_s: int) -> None:
    weights_bytes = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    limits = {
        resource.RLIMIT_AS: _FLOOR_BYTES + _WEIGHTS_TIMES * weights_bytes,
        resource.RLIMIT_CPU: limit_s,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # the system's own limit is lower still
            resource.setrlimit(limit, (value, value))


def _tried(path: Path, spec: ModelSpec, limit_s: int) -> int:
    _bound(path, limit_s)
    try:
        with engine_from_onnx(path, spec, threads=1):
            return 0
    except EdgeError as error:
        problem = {"expected": error.expected, "found": error.found, "do": error.do}
        sys.stdout.write("\n" + json.dumps(problem) + "\n")
        return InputError.exit_status


if __name__ == "__main__":
    onnx, text, seconds = sys.argv[1:]
    sys.exit(_tried(Path(onnx), msgspec.json.decode(text, type=ModelSpec), int(seconds)))
