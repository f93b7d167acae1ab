"""The engine on a plan: buffers, warm runs, one captured cuda_graph, and what is refused.

On a machine with an Orin's or another NVIDIA GPU the engine runs for real elsewhere (`edge bench`);
here its logic runs on a stand-in (see `gpu_stand_in`), and no timing of it means anything.
"""

import sys
import types

import msgspec
import numpy as np
import pytest
from gpu_stand_in import IDENTITY, L4T, VERSION, Cudart, stamp_of, tensorrt_on, write_plan
from orin_sysfs import write, write_orin
from small_station import (
    BAD,
    CHANNELS,
    GOOD,
    READINGS,
    SIZE,
    spec_of,
    write_bundle,
    write_model,
    write_station,
)
from test_device_agents_engine_on_onnxruntime import write_batch_model

from device_agents.engine import gpu as gpu_module
from device_agents.engine import on_tensorrt
from device_agents.engine.buffers import Buffers
from device_agents.engine.load import engine_from_bundle
from device_agents.engine.on_onnxruntime import engine_from_onnx
from device_agents.engine.on_tensorrt import engine_from_plan, tensorrt_module
from device_agents.station import station_from_toml
from edge.bundle import INT8_FILE
from edge.errors import InputError, MachineError
from edge.plan import Plan
from edge.prepare import model_inputs
from edge.sample import Frame, Sample, Window


@pytest.fixture
def orin(tmp_path, monkeypatch):
    """A machine as the plan's stamp wants it; returns its CUDA."""
    root = write_orin(tmp_path / "orin")
    write(root, "etc/nv_tegra_release", L4T)

    def put(**facts) -> Cudart:
        rt = Cudart(**facts)
        trt = tensorrt_on(rt)
        identity_of = gpu_module.identity_of
        monkeypatch.setattr(on_tensorrt, "identity_of", lambda gpu: identity_of(gpu, root))
        monkeypatch.setattr(gpu_module, "cudart", lambda: rt)
        monkeypatch.setattr(on_tensorrt, "cudart", lambda: rt)
        monkeypatch.setattr(on_tensorrt, "tensorrt_module", lambda flavour: trt)
        return rt

    return put


def plan_of(folder, spec=None, **changes) -> Plan:
    spec = spec or spec_of()
    model = folder / "model.onnx"
    (write_model if spec.batch == 1 else write_batch_model)(model, spec)
    write_plan(folder / "model.plan", model.read_bytes(), stamp_of(spec, **changes))
    return Plan.open(folder / "model.plan")


def sample_of(level: int, shake: float = 0.0):
    window = Window(np.full((2, READINGS), shake, np.float32), CHANNELS, 0)
    frame = Frame(np.full((SIZE, SIZE, 3), level, np.uint8), 0)
    return model_inputs(Sample("p", frame, window), spec_of())


MACHINES = [
    ({}, "mapped"),
    ({"maps": False}, "managed"),
    ({"integrated": False}, "device"),
    ({"maps": False, "managed": False}, "device"),
]


@pytest.mark.parametrize(("facts", "kind"), MACHINES)
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_scores_are_those_of_the_onnx_file_wherever_the_buffers_lie(
    orin, tmp_path, facts, kind, cuda_graph
):
    rt = orin(**facts)
    built_for = msgspec.structs.replace(IDENTITY, module=None, power_mode=None)
    stamp = {} if facts.get("integrated", True) else {"built_for": built_for}
    plan = plan_of(tmp_path, **stamp)
    with (
        engine_from_plan(plan, cuda_graph=cuda_graph) as engine,
        engine_from_onnx(tmp_path / "model.onnx", spec_of(), threads=1) as reference,
    ):
        assert engine._buffers.kind == kind
        for level, shake in ((GOOD, 0.0), (BAD, 1.0), (GOOD, 2.0)):
            found, wanted = (e.score(sample_of(level, shake)) for e in (engine, reference))
            assert found.anomaly_score == wanted.anomaly_score
            for name in ("class_scores", "anomaly_map", "embedding"):
                assert np.array_equal(getattr(found, name), getattr(wanted, name))
        split = engine.split([sample_of(GOOD)])
        assert split.copy_ms >= 0.5, "two copies of a quarter millisecond by the stand-in's clock"
        assert split.compute_ms == 0.25
        assert split.wait_ms >= 0
    assert engine.name == f"tensorrt {VERSION} int8"
    assert not rt.memory, "all memory was given back"
    assert not any(rt.live.values()), "and every stream, event and cuda_graph"


def test_one_run_is_one_launch_of_what_was_captured_after_warm_runs(orin, tmp_path):
    rt = orin(integrated=False)
    built_for = msgspec.structs.replace(IDENTITY, module=None, power_mode=None)
    with engine_from_plan(plan_of(tmp_path, built_for=built_for)) as engine:
        warm = ["copy in", "plan", "copy out"] * 2
        captured = [f"{step}, captured" for step in warm[:3]]
        assert rt.log == [*warm, *captured, "launch"]
        blocks = dict(rt.memory)
        del rt.log[:]
        for level in (GOOD, BAD):
            engine.score(sample_of(level))
        assert rt.log == ["launch", "launch"]
        assert rt.memory == blocks, "nothing is allocated after the start"


def test_gpu_that_shares_the_hosts_memory_copies_nothing(orin, tmp_path):
    rt = orin()
    with engine_from_plan(plan_of(tmp_path), cuda_graph=False) as engine:
        engine.score(sample_of(GOOD))
    assert set(rt.log) == {"plan"}


def test_batch_gives_each_sample_its_own_scores(orin, tmp_path):
    orin()
    spec = msgspec.structs.replace(spec_of(), batch=4)
    with engine_from_plan(plan_of(tmp_path, spec)) as engine:
        scores = engine.score_batch([sample_of(level) for level in (10, 80, 160)])
        assert [s.anomaly_score for s in scores] == pytest.approx([10 / 255, 80 / 255, 160 / 255])
        again = engine.score(sample_of(240))
        assert again.anomaly_score == pytest.approx(240 / 255)
        assert scores[0].embedding == pytest.approx([10 / 255] * 2), "no scores share memory"


def test_without_a_gpu_it_stops(orin, tmp_path):
    orin(count=0)
    with pytest.raises(MachineError, match=r"an NVIDIA GPU, found none.*provider cpu by name"):
        engine_from_plan(plan_of(tmp_path))


def test_plan_that_does_not_fit_is_refused_before_it_is_loaded(orin, tmp_path):
    rt = orin()
    built_for = msgspec.structs.replace(IDENTITY, power_mode="MAXN")
    with pytest.raises(InputError, match=r"power mode MAXN where this is MODE_50W.*Rebuild"):
        engine_from_plan(plan_of(tmp_path, built_for=built_for))
    assert not rt.log


def test_power_mode_that_cannot_be_read_says_how_to_set_it(orin, tmp_path):
    orin()
    (tmp_path / "orin/var/lib/nvpmodel/status").unlink()
    with pytest.raises(MachineError, match=r"power mode of NVIDIA Jetson.*nvpmodel -m"):
        engine_from_plan(plan_of(tmp_path))


def test_plan_of_another_model_is_refused_by_the_tensor(orin, tmp_path):
    orin()
    plan_of(tmp_path)
    other = msgspec.structs.replace(spec_of(), map_height=5)
    content = (tmp_path / "model.onnx").read_bytes()
    path = write_plan(tmp_path / "other.plan", content, stamp_of(other))
    with pytest.raises(InputError, match="output 'anomaly_map'"):
        engine_from_plan(Plan.open(path))


def test_plan_that_tensorrt_does_not_load_gives_its_reason(orin, tmp_path):
    orin()
    path = write_plan(tmp_path / "bad.plan", b"no plan at all", stamp_of(spec_of()))
    with pytest.raises(InputError, match=r"TensorRT loads, found no plan.*edge build"):
        engine_from_plan(Plan.open(path))


@pytest.mark.parametrize("room", [100, 2000])
def test_too_little_memory_is_said_and_nothing_is_kept(orin, tmp_path, room):
    rt = orin(room=room)
    with pytest.raises(MachineError, match="memory"):
        engine_from_plan(plan_of(tmp_path))
    assert not rt.memory
    assert not any(rt.live.values())


def test_engine_that_fails_while_it_starts_keeps_nothing(orin, tmp_path, monkeypatch):
    rt = orin()
    failed = lambda graph, flags: (2, None)  # noqa: E731
    monkeypatch.setattr(rt, "cudaGraphInstantiate", failed, raising=True)
    with pytest.raises(MachineError, match="CUDA"):
        engine_from_plan(plan_of(tmp_path))
    assert not rt.memory
    assert not any(rt.live.values())


def test_buffers_can_be_asked_for_by_name(orin, tmp_path):
    orin()
    for kind in ("mapped", "managed", "device"):
        with engine_from_plan(plan_of(tmp_path), memory=kind) as engine:
            assert engine._buffers.kind == kind
            assert engine.score(sample_of(BAD)).anomaly_score == pytest.approx(BAD / 255)


def test_every_tensor_is_aligned_and_none_touches_another():
    rt, spec = Cudart(), spec_of()
    with Buffers(rt, spec.inputs(), spec.outputs(), "mapped") as buffers:
        places = sorted(buffers.addresses().values())
        assert len(set(places)) == len(places) == 7
        arrays = {**buffers.inputs(), **buffers.outputs()}
        for number, array in enumerate(arrays.values()):
            array[...] = number
        assert all((array == number).all() for number, array in enumerate(arrays.values()))
        for side in (spec.inputs(), spec.outputs()):
            starts = [buffers.addresses()[tensor.name] for tensor in side]
            assert all((start - starts[0]) % 256 == 0 for start in starts)
    buffers.close()  # twice is once


# ---- The door: bundle, provider and plan. --------------------------------------------------------


def bundle_and_plan(folder, **changes):
    bundle = write_bundle(folder / "bundle")
    content = (folder / "bundle" / INT8_FILE).read_bytes()
    stamp = stamp_of(spec_of(), **{"bundle_digest": bundle.digest, **changes})
    return bundle, write_plan(folder / "model.plan", content, stamp)


def test_provider_of_tensorrt_runs_the_bundles_plan(orin, tmp_path):
    orin()
    bundle, plan = bundle_and_plan(tmp_path)
    with engine_from_bundle(bundle, "tensorrt", plan=plan) as engine:
        assert engine.score(sample_of(GOOD)).anomaly_score == pytest.approx(GOOD / 255)


def test_provider_of_tensorrt_without_a_plan_says_how_to_build_one(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(InputError, match=r"a plan of the bundle.*edge build .*bundle --out PLAN"):
        engine_from_bundle(bundle, "tensorrt")


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_plan_for_a_provider_that_runs_none_is_refused(tmp_path, provider):
    bundle, plan = bundle_and_plan(tmp_path)
    with pytest.raises(InputError, match="Remove the plan"):
        engine_from_bundle(bundle, provider, plan=plan)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bundle_digest": "d" * 64}, "a plan of the bundle"),
        ({"form": "fp16"}, "form int8, found one of .* form fp16"),
        ({"flavour": "tensorrt_rtx"}, "a plan of tensorrt, found one of tensorrt_rtx"),
    ],
)
def test_plan_of_another_bundle_form_or_builder_is_refused(tmp_path, changes, said):
    bundle, plan = bundle_and_plan(tmp_path, **changes)
    with pytest.raises(InputError, match=said):
        engine_from_bundle(bundle, "tensorrt", plan=plan)


@pytest.mark.parametrize(("flavour", "do"), [("tensorrt", "apt"), ("tensorrt_rtx", "pip")])
def test_machine_without_tensorrt_says_how_to_get_it(monkeypatch, flavour, do):
    monkeypatch.setitem(sys.modules, flavour, None)
    with pytest.raises(MachineError, match=f"Python package '{flavour}'.*{do} install"):
        tensorrt_module(flavour)


def test_bare_folder_of_type_stubs_is_not_taken_for_tensorrt(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    with pytest.raises(MachineError, match="without the package"):
        tensorrt_module("tensorrt")


def test_station_names_its_plan_relative_to_its_own_file(tmp_path):
    path = write_station(tmp_path)
    text = path.read_text().replace(
        'bundle = "bundle"', 'bundle = "bundle"\nprovider = "tensorrt"\nplan = "model.plan"'
    )
    path.write_text(text)
    model = station_from_toml(path).model
    assert model.plan == str(tmp_path / "model.plan")
    assert (model.provider, model.form, model.cuda_graph) == ("tensorrt", None, True)
