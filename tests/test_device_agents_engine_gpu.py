"""What the machine says of itself: GPU, driver, module and power mode, or that it has none."""

import pytest
from gpu_stand_in import IDENTITY, L4T, Cudart, Status
from orin_sysfs import write, write_orin

from device_agents.engine import gpu as gpu_module
from device_agents.engine.gpu import checked, cudart, gpu_and_identity, gpu_here, identity_of
from edge.errors import MachineError
from edge.plan import MachineIdentity

NVRM = {
    "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build": "540.4.0",
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  595.71.05  Tue Nov  4 2026": "595.71.05",
    "something else altogether": None,
    "": None,
}


@pytest.fixture
def orin(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_module, "cudart", Cudart)
    root = write_orin(tmp_path)
    write(root, "etc/nv_tegra_release", L4T)
    return root


def test_orin_is_named_by_all_that_a_plan_is_bound_to(orin):
    gpu, identity = gpu_and_identity(orin)
    assert identity == IDENTITY
    assert (gpu.integrated, gpu.maps_host_memory) == (True, True)


@pytest.mark.parametrize(("line", "version"), NVRM.items())
def test_driver_of_a_pc_is_read_from_the_kernel_modules_words(orin, line, version):
    write(orin, "etc/nv_tegra_release", "what no L4T writes")
    write(orin, "proc/driver/nvidia/version", line)
    assert identity_of(gpu_here(), orin).driver == version


@pytest.mark.parametrize("status", ["", "pmode:", "nonsense"])
def test_power_mode_of_a_jetson_that_cannot_be_read_is_the_machines_lack(orin, status):
    write(orin, "var/lib/nvpmodel/status", status)
    with pytest.raises(MachineError, match="nvpmodel's state"):
        gpu_and_identity(orin)


def test_pc_with_a_gpu_has_no_module_and_no_power_mode(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_module, "cudart", lambda: Cudart(integrated=False))
    _, identity = gpu_and_identity(tmp_path)
    assert (identity.gpu, identity.module, identity.power_mode) == ("Orin", None, None)


@pytest.mark.parametrize("facts", [{"count": 0}, None])
def test_machine_without_a_gpu_or_without_cuda_has_none(tmp_path, monkeypatch, facts):
    def absent():
        if facts is None:
            raise MachineError(where="CUDA", expected="it", found="none", do="Install it.")
        return Cudart(**facts)

    monkeypatch.setattr(gpu_module, "cudart", absent)
    assert gpu_and_identity(tmp_path) == (None, MachineIdentity())


def test_failed_call_is_an_error_by_its_name():
    with pytest.raises(MachineError, match="cudaErrorMemoryAllocation"):
        checked((Status.cudaErrorMemoryAllocation, None))
    assert checked((Status.cudaSuccess, 5)) == 5
    assert checked((Status.cudaSuccess, 5, 6)) == [5, 6]


def test_real_cuda_of_this_machine_answers_or_is_missed():
    """Not a stand-in: cuda-bindings imports without a GPU, and then knows none."""
    try:
        cudart()
    except MachineError as error:
        pytest.skip(f"CUDA's Python package is NOT here: {error}")
    gpu = gpu_here()
    assert gpu is None or gpu.total_bytes > 0
