"""What the doctor looks at in the GPU: is there one that the station's configuration leaves idle?

Looked for in files, as the kernel and the driver show them: it needs no CUDA, whose absence may be
just what is wrong. An Orin's own GPU hangs on no bus that lists it; the device tree names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from device_agents.doctor.diagnosis import Finding, Patient

_OF_THE_DRIVER = "proc/driver/nvidia/gpus/*/information"
_DEVICES = "dev/nvidia[0-9]*"
_OF_AN_ORIN = ("sys/devices/platform/bus@0/17000000.gpu", "sys/devices/platform/17000000.gpu")
_BOARD = "proc/device-tree/model"


def look_at_gpu(patient: Patient) -> Iterator[Finding]:
    """Whether an NVIDIA GPU of this machine is idle, because the model was told to run elsewhere.

    A model that was told to run on a GPU is looked at by the engine's check: it stops without one.
    """
    provider, gpu = patient.station.model.provider, nvidia_gpu_in()
    if provider != "cpu":
        said = f"this machine has {gpu}" if gpu else "no NVIDIA GPU is seen here"
        yield Finding("gpu", "ok", f"{said}; whether '{provider}' runs, the engine's check tells")
    elif gpu is None:
        yield Finding("gpu", "ok", "this machine has no NVIDIA GPU, and the model runs on the CPU")
    else:
        said = f"this machine has {gpu}, and model.provider is 'cpu': the model does not use it"
        yield Finding("gpu", "warn", said, _next_step(patient))


def nvidia_gpu_in(root: Path = Path("/")) -> str | None:
    """Name the machine's NVIDIA GPU, None where none is seen; `root` is where its /proc lies."""
    for path in sorted(root.glob(_OF_THE_DRIVER)):
        for line in _text(path).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model" and value.strip():
                return value.strip()
    if any((root / path).exists() for path in _OF_AN_ORIN):
        return f"the GPU of {_text(root / _BOARD).strip(chr(0)).strip() or 'an Orin'}"
    return "an NVIDIA GPU" if any(root.glob(_DEVICES)) else None


def _next_step(patient: Patient) -> str:
    """Say how to use it, by what is installed here."""
    if find_spec("tensorrt") is None:
        return (
            "Install TensorRT (JetPack has it; elsewhere pip install 'orin-inspect[tensorrt]'), "
            "then `edge build` a plan, and name it as model.plan with model.provider = 'tensorrt'."
        )
    return (
        f"edge build {patient.station.model.bundle} --out PLAN, then set model.provider = "
        "'tensorrt' and model.plan = 'PLAN' in the station file; `edge bench` shows the gain."
    )


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[:4096].decode(errors="replace")
    except OSError:
        return ""
