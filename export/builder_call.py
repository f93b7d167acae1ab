"""Calls the builder's process, passes its progress on, and makes its answers ours."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge.errors import AnswerIsNo, InputError, MachineError, signal_name

FREE_SOME = (
    "Free some: stop the agents and the desktop (sudo systemctl isolate multi-user.target), drop "
    "the file cache (echo 3 | sudo tee /proc/sys/vm/drop_caches), add swap on the NVMe disk; or "
    "take a smaller student."
)
_LIMIT_S = 4 * 3600.0  # the largest student on the slowest module takes a part of it

OnProgress = Callable[[dict[str, Any]], None]  # one event of the builder's progress monitor


def build_in_process(
    request: dict[str, Any], onnx: Path, on_progress: OnProgress
) -> dict[str, Any]:
    """Run the builder's process; return its last word. Raises where it is not that it built."""
    last: dict[str, Any] = {}
    with _builder(request) as (process, said):
        for line in process.stdout or ():
            event = _event_in(line)
            if "outcome" in event:
                last = event
            elif event:
                on_progress(event)
        status = process.wait()
        said.seek(0)
        words = said.read().decode(errors="replace").strip().rpartition("\n")[2][:300]
    outcome = last.get("outcome")
    if status != 0 or outcome is None:
        raise _broke_down(onnx, status, words)
    if outcome == "not loaded":
        raise _not_loaded(request["flavour"], last["reason"])
    if outcome == "unknown gpu":
        raise _unknown_gpu(request["compute_capability"], last["known"])
    if outcome == "no dla":
        raise _no_dla(request["dla_core"], last["cores"])
    if outcome == "refused":
        raise _refused(onnx, last["errors"])
    return last


@contextlib.contextmanager
def _builder(request: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """Start the builder's process, and end it whatever happens here."""
    command = [sys.executable, "-m", "export.builder_process", json.dumps(request)]
    # Run from where our packages lie, so that no folder named `export` of a person's is imported.
    home = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, cwd=home, stdout=subprocess.PIPE, stderr=said, text=True, errors="replace"
        )
        too_long = threading.Timer(_LIMIT_S, process.kill)
        too_long.start()
        try:
            yield process, said
        finally:
            too_long.cancel()
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _event_in(line: str) -> dict[str, Any]:
    """Return the event in a line; empty where it is something else that was printed."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _broke_down(onnx: Path, status: int, words: str) -> MachineError | AnswerIsNo:
    if status == -signal.SIGKILL:
        return MachineError(
            where=onnx,
            expected="memory and time for NVIDIA's builder",
            found="it was killed: most often the kernel does that when memory is out",
            do=FREE_SOME,
        )
    how = signal_name(-status) if status < 0 else f"exit status {status}"
    return AnswerIsNo(
        where=onnx,
        expected="NVIDIA's builder to build it or to say why not",
        found=f"it broke down: {how} ({words or 'nothing said'})",
        do="Export it again, and look at what `edge export` says of its compile check.",
    )


def _not_loaded(flavour: str, reason: str) -> MachineError:
    return MachineError(
        where=f"builder '{flavour}'",
        expected="it to load",
        found=reason[:300],
        do="Look at the driver (nvidia-smi) and at the versions of TensorRT and CUDA.",
    )


def _no_dla(core: int, cores: int) -> MachineError:
    return MachineError(
        where=f"--dla-core {core}",
        expected="a DLA of that number",
        found=f"{cores} here",
        do="Leave it out: the GPU runs all; an Orin Nano has no DLA, an Orin NX 8GB one.",
    )


def _unknown_gpu(asked: str, known: list[str]) -> InputError:
    return InputError(
        where=f"--compute-capability {asked}",
        expected=f"one of {', '.join(known)}",
        found="another",
        do="Take the one of the GPU that will run the plan.",
    )


def _refused(onnx: Path, errors: list[dict[str, str]]) -> AnswerIsNo:
    nodes = "; ".join(f"{error['node'] or 'the model'}: {error['text']}" for error in errors)
    return AnswerIsNo(
        where=onnx,
        expected="a model that NVIDIA's parser and builder take",
        found=f"refused: {nodes}",
        do="Export it again with a student of operators that TensorRT knows; the compile check of "
        "`edge export` names the remedy for each.",
    )
