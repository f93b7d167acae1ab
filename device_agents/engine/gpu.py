"""The seam to CUDA: what the GPU says of itself, and calls whose failure is an error of ours.

cuda-bindings (`cuda.bindings.runtime`) answers every call with a tuple, its status first. Nothing
else in this project speaks to CUDA.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_agents.monitor.machine import Machine
from edge.errors import MachineError
from edge.plan import MachineIdentity

DEVICE = 0  # an Orin has one GPU; elsewhere CUDA_VISIBLE_DEVICES chooses
_DRIVER_FILE = "proc/driver/nvidia/version"
_L4T_FILE = "etc/nv_tegra_release"
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Gpu:
    """What the driver says of the GPU."""

    name: str
    compute_capability: str
    cuda: str  # the newest that the driver serves
    integrated: bool  # it shares the host's memory, as on every Orin
    maps_host_memory: bool
    has_managed_memory: bool
    free_bytes: int
    total_bytes: int


def cudart() -> Any:
    """Return the module of CUDA's runtime. Raises MachineError where it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MachineError(
            where="CUDA",
            expected="the Python package 'cuda-bindings'",
            found=str(error),
            do="Install it with: pip install 'orin-inspect[tensorrt]'",
        ) from None
    return runtime


def checked(answer: tuple[Any, ...]) -> Any:
    """Return what a call of CUDA's gave, without its status. Raises MachineError by its name."""
    status, *values = answer
    if int(status) != 0:
        raise MachineError(
            where="CUDA",
            expected="the GPU to do as it was told",
            found=getattr(status, "name", str(status)),
            do="Look at `dmesg` and at the free memory; after a fault of the GPU, restart.",
        )
    return values[0] if len(values) == 1 else values


def gpu_here() -> Gpu | None:
    """Return the GPU, or None where the driver knows none. Raises MachineError without CUDA."""
    rt = cudart()
    status, count = rt.cudaGetDeviceCount()
    if int(status) != 0 or not count:
        return None
    checked(rt.cudaSetDevice(DEVICE))
    about = checked(rt.cudaGetDeviceProperties(DEVICE))
    version = checked(rt.cudaDriverGetVersion())
    free_bytes, total_bytes = checked(rt.cudaMemGetInfo())

    def has(attribute: Any) -> bool:
        return bool(checked(rt.cudaDeviceGetAttribute(attribute, DEVICE)))

    return Gpu(
        name=about.name.decode().rstrip("\0"),
        compute_capability=f"{about.major}.{about.minor}",
        cuda=f"{version // 1000}.{version % 1000 // 10}",
        integrated=has(rt.cudaDeviceAttr.cudaDevAttrIntegrated),
        maps_host_memory=has(rt.cudaDeviceAttr.cudaDevAttrCanMapHostMemory),
        has_managed_memory=has(rt.cudaDeviceAttr.cudaDevAttrManagedMemory),
        free_bytes=free_bytes,
        total_bytes=total_bytes,
    )


def gpu_and_identity(root: Path = Path("/")) -> tuple[Gpu | None, MachineIdentity]:
    """Return the GPU and what a plan is bound to here; a machine without CUDA has no GPU.

    Raises MachineError on a Jetson whose power mode cannot be read.
    """
    try:
        gpu = gpu_here()
    except MachineError:
        gpu = None
    return gpu, identity_of(gpu, root)


def gpu_or_stop(asked: str) -> Gpu:
    """Return the GPU. Raises MachineError where there is none: `asked` names who wants it."""
    gpu = gpu_here()
    if gpu is None:
        raise MachineError(
            where=asked,
            expected="an NVIDIA GPU",
            found="none that the driver knows",
            do="Run it on the Orin, or ask for the provider cpu by name.",
        )
    return gpu


def identity_of(gpu: Gpu | None, root: Path = Path("/")) -> MachineIdentity:
    """Return what a plan is bound to on this machine; `root` is where its /proc and /etc lie.

    Raises MachineError on a Jetson whose power mode cannot be read: a plan is tuned at one.
    """
    board = Machine(root, root)
    module, power_mode = board.module(), board.power_mode()
    is_jetson = gpu is not None and gpu.integrated and module is not None
    if is_jetson and power_mode is None:
        raise MachineError(
            where=f"the power mode of {module}",
            expected="nvpmodel's state in /var/lib/nvpmodel/status",
            found="nothing readable there",
            do="Set the mode once (sudo nvpmodel -m N), read it back (nvpmodel -q), try again.",
        )
    return MachineIdentity(
        gpu=gpu.name if gpu else None,
        compute_capability=gpu.compute_capability if gpu else None,
        driver=_driver_of(root),
        cuda=gpu.cuda if gpu else None,
        module=module if is_jetson else None,
        power_mode=power_mode if is_jetson else None,
    )


def _driver_of(root: Path) -> str | None:
    """Return the driver's version: on a Jetson L4T's, of which it is a part, always readable.

    Elsewhere it is in the kernel module's own words, "NVRM version: ...  595.71.05  ...".
    """
    if release := re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _head(root / _L4T_FILE)):
        return f"L4T {release[1]}.{release[2]}"
    module = re.search(r"NVRM version:.*?\s(\d+(?:\.\d+)+)\s", _head(root / _DRIVER_FILE))
    return module[1] if module else None


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES).decode(errors="replace")
    except OSError:
        return ""
