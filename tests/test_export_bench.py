"""The bench: percentiles of single runs, a run's parts, energy where a board reports it."""

import time

import msgspec
import numpy as np
import pytest
from orin_sysfs import write, write_orin
from small_station import spec_of, write_bundle

from device_agents.engine.load import engine_from_bundle
from device_agents.monitor.machine import Machine
from edge.scorer import Split
from export import bench as module
from export.bench import PowerLog, energy_of, invented_inputs, latency_of, measure

# An Orin Nano's only monitor: its first rail is the board's whole input.
NANO_RAILS = (("VDD_IN", 5000, 1000), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 5000, 300))


def test_percentiles_are_of_single_runs_by_nearest_rank():
    latency = latency_of([float(ms) for ms in range(1, 1001)])
    assert (latency.p50, latency.p90, latency.p99, latency.p99_9) == (500, 900, 990, 999)
    assert latency.longest == 1000
    assert latency.mean == pytest.approx(500.5)
    assert latency.jitter == pytest.approx(1.0)


def test_one_percentile_too_fine_for_the_runs_is_not_given():
    latency = latency_of([3.0, 1.0, 2.0])
    assert latency.p99_9 is None
    assert (latency.p50, latency.longest) == (2.0, 3.0)
    assert latency.jitter == pytest.approx(1.5), "in the order in which they ran: 2, then 1"
    assert latency_of([4.0]).jitter == 0.0


@pytest.mark.parametrize("sensor", [True, False])
def test_invented_inputs_are_those_of_the_spec_and_the_same_each_time(sensor):
    spec = msgspec.structs.replace(spec_of(sensor=sensor), batch=3)
    samples, again = invented_inputs(spec), invented_inputs(spec)
    for sample, other in zip(samples, again, strict=True):
        assert list(sample) == [tensor.name for tensor in spec.inputs()]
        for tensor in spec.inputs():
            assert sample[tensor.name].shape == (1, *tensor.shape[1:])
            assert sample[tensor.name].dtype == tensor.dtype
            assert np.array_equal(sample[tensor.name], other[tensor.name])


def test_real_engine_is_measured_and_its_parts_are_its_whole(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    with engine_from_bundle(bundle, threads=1) as engine:
        figures = measure(engine, invented_inputs(engine.spec), runs=30)
        engine_name = engine.name
    assert (figures.engine, figures.runs, figures.batch) == (engine_name, 30, 1)
    assert 0 < figures.latency_ms.p50 <= figures.latency_ms.p99 <= figures.latency_ms.longest
    assert figures.samples_per_s > 0
    assert figures.split_ms.copy > 0
    assert figures.split_ms.compute > 0
    assert figures.split_ms.wait is None, "onnxruntime does not tell it from its compute"
    assert "wait is not measured" in figures.split_ms.remark
    assert figures.energy is None, "no power was given to read"


class Slow:
    """A scorer that takes as long as it says, in parts that it says."""

    name = "slow"

    def __init__(self, batch):
        self.spec = msgspec.structs.replace(spec_of(), batch=batch)
        self.batches = []

    def score_batch(self, several):
        self.batches.append(len(several))
        time.sleep(0.002)
        return []

    def split(self, several):
        return Split(copy_ms=0.5, compute_ms=1.25, wait_ms=0.25)


def test_full_batches_are_run_and_throughput_counts_samples(monkeypatch):
    slow = Slow(batch=4)
    figures = measure(slow, invented_inputs(slow.spec), runs=20)
    assert set(slow.batches) == {4}
    assert 0 < figures.samples_per_s <= 4 / 0.002
    assert figures.split_ms == module.MeanSplit(0.5, 1.25, 0.25, remark="")


def nano(root, milliamperes: int):
    """An Orin Nano's rails, the whole board at `milliamperes` on 5 V."""
    write_orin(root)
    for chip in ("hwmon1", "hwmon2"):
        write(root, f"sys/class/hwmon/{chip}/name", "none")
    write(root, "sys/class/hwmon/hwmon5/name", "ina3221")
    for channel, (label, millivolts, current) in enumerate(NANO_RAILS, start=1):
        write(root, f"sys/class/hwmon/hwmon5/in{channel}_label", label)
        write(root, f"sys/class/hwmon/hwmon5/in{channel}_input", str(millivolts))
        now = milliamperes if label == "VDD_IN" else current
        write(root, f"sys/class/hwmon/hwmon5/curr{channel}_input", str(now))
    return Machine(root, root)


def test_energy_is_the_boards_whole_input_over_the_samples(tmp_path):
    idle = [nano(tmp_path / "idle", 1000).power_watts()] * 6
    busy = [nano(tmp_path / "busy", 3000).power_watts()] * 6
    energy = energy_of(idle, busy, samples_per_s=50)
    assert energy.rail == "VDD_IN"
    assert (energy.idle_watts, energy.busy_watts) == (5.0, 15.0)
    assert energy.joules_per_sample == pytest.approx(0.3)


def test_board_without_one_input_rail_adds_all_of_them(tmp_path):
    power = Machine(write_orin(tmp_path), tmp_path).power_watts()
    assert set(power) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}
    energy = energy_of([power] * 5, [power] * 5, samples_per_s=10)
    assert energy.rail == "sum of VDD_CPU_CV, VDD_GPU_SOC, VIN_SYS_5V0"
    assert energy.busy_watts == pytest.approx(sum(power.values()))


@pytest.mark.parametrize("readings", [0, 4])
def test_energy_of_too_few_readings_is_not_given(readings):
    assert energy_of([{"VDD_IN": 5.0}] * 6, [{"VDD_IN": 5.0}] * readings, 10) is None


def test_power_is_read_while_the_engine_works(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_IDLE_S", 0.3)
    monkeypatch.setattr(module, "_POWER_EVERY_S", 0.02)
    machine = nano(tmp_path, 2000)
    slow = Slow(batch=1)
    figures = measure(slow, invented_inputs(slow.spec), runs=100, read_power=machine.power_watts)
    assert figures.energy.busy_watts == figures.energy.idle_watts == 10.0
    assert figures.energy.joules_per_sample == pytest.approx(10.0 / figures.samples_per_s)


def test_machine_that_reports_no_power_costs_no_time():
    with PowerLog(dict) as power:
        time.sleep(0.25)
    assert power.readings == []
