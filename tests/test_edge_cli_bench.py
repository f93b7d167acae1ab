"""`edge bench`, as a person runs it: on onnxruntime for real, on a plan by a stand-in's GPU."""

import json
import re

import msgspec
import pytest
from export_stand_in import write_small_bundle
from gpu_stand_in import IDENTITY, L4T, Cudart, stamp_of, tensorrt_on, write_plan
from orin_sysfs import write, write_orin
from small_station import spec_of, write_bundle

from device_agents.engine import gpu as gpu_module
from device_agents.engine import on_tensorrt
from edge.bundle import FP32_FILE, INT8_FILE, Bundle
from edge.cli.main import main


def bench(target, *words, capsys):
    status = main(["bench", str(target), "--runs", "25", *words])
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.fixture
def plan(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    content = (tmp_path / "bundle" / INT8_FILE).read_bytes()
    return write_plan(
        tmp_path / "m.plan", content, stamp_of(spec_of(), bundle_digest=bundle.digest)
    )


@pytest.fixture
def orin(tmp_path, monkeypatch):
    root = write_orin(tmp_path / "orin")
    write(root, "etc/nv_tegra_release", L4T)
    rt = Cudart()
    trt = tensorrt_on(rt)
    identity_of, both = gpu_module.identity_of, gpu_module.gpu_and_identity
    monkeypatch.setattr(gpu_module, "cudart", lambda: rt)
    monkeypatch.setattr(gpu_module, "gpu_and_identity", lambda: both(root))
    monkeypatch.setattr(on_tensorrt, "cudart", lambda: rt)
    monkeypatch.setattr(on_tensorrt, "tensorrt_module", lambda flavour: trt)
    monkeypatch.setattr(on_tensorrt, "identity_of", lambda gpu: identity_of(gpu, root))
    return rt


def test_bundle_is_measured_on_the_cpu_and_shown_as_a_table(tmp_path, capsys):
    write_bundle(tmp_path / "bundle")
    status, out, _ = bench(tmp_path / "bundle", "--threads", "1", capsys=capsys)
    assert status == 0
    for row in ("p50", "p90", "p99", "jitter", "copy", "compute", "samples/s", "process"):
        assert row in out
    assert "not measured: in compute" in out  # the wait, of which onnxruntime says nothing
    assert "- (25 runs; from 1,000 on)" in out
    assert "not reported by this board" in out
    assert "onnxruntime" in out
    assert "cpu int8" in out
    assert "threads 1" in out
    assert re.search(r"memory\s\d+\sGB", out)


def test_json_is_one_object_with_the_machines_identity(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "bundle")
    words = ("--json", "--form", "fp32", "--threads", "1")
    status, out, _ = bench(tmp_path / "bundle", *words, capsys=capsys)
    document = json.loads(out)
    assert status == 0
    assert document["model"]["bundle_digest"] == bundle.digest
    assert document["model"]["form"] == "fp32"
    assert {"module", "power_mode", "gpu", "driver", "cuda", "cpu", "cores"} <= set(
        document["machine"]
    )
    machine = document["machine"]
    assert machine["cores"] >= 1
    assert machine["memory_bytes"] > 1e9
    assert len(machine["cpu"]) > 2
    assert (document["model"]["provider"], document["model"]["threads"]) == ("cpu", 1)
    [result] = document["results"]
    split = result["figures"]["split_ms"]
    assert split["wait"] is None
    assert "launches and waits inside its own compute" in split["remark"]
    assert result["cuda_graph"] is None
    assert result["figures"]["runs"] == 25
    assert set(result["figures"]["latency_ms"]) == {
        *("p50", "p90", "p99", "p99_9", "longest", "mean", "jitter")
    }
    assert result["process_bytes"] > 10e6


def test_plan_is_measured_with_and_without_cuda_graph(plan, orin, capsys):
    status, out, _ = bench(plan, "--json", capsys=capsys)
    document = json.loads(out)
    assert status == 0
    assert [result["cuda_graph"] for result in document["results"]] == [True, False]
    assert document["machine"]["power_mode"] == IDENTITY.power_mode
    assert document["model"]["plan"]["tensorrt"] == "10.3.0"
    assert (document["model"]["provider"], document["model"]["threads"]) == ("tensorrt", None)
    split = document["results"][0]["figures"]["split_ms"]
    assert split["compute"] == 0.25, "by the stand-in's clock"
    assert orin.log.count("launch") > 25
    assert not orin.memory
    assert bench(plan, capsys=capsys)[1].count("cuda_graph") == 1


def test_verify_scores_the_golden_samples_by_the_plan_too(tmp_path, orin, capsys):
    write_small_bundle(tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    stamp = stamp_of(bundle.manifest.spec, bundle_digest=bundle.digest)
    for file in (INT8_FILE, FP32_FILE):
        content = (bundle.folder / file).read_bytes()
        path = write_plan(tmp_path / "m.plan", content, stamp)
        assert main(["verify", str(bundle.folder), "--plan", str(path)]) == 0
        assert "golden samples by tensorrt 10.3.0 int8" in capsys.readouterr().out
    other = msgspec.structs.replace(stamp, bundle_digest="d" * 64)
    path = write_plan(tmp_path / "other.plan", content, other)
    assert main(["verify", str(bundle.folder), "--plan", str(path)]) == 2
    assert "a plan of the bundle" in capsys.readouterr().err


def test_plan_from_another_machine_is_refused(tmp_path, plan, orin, capsys):
    other = msgspec.structs.replace(IDENTITY, gpu="Thor")
    write_plan(plan, b"anything", stamp_of(spec_of(), built_for=other))
    status, _, said = bench(plan, capsys=capsys)
    assert status == 2
    assert "GPU Thor where this is Orin. Rebuild it on this machine: edge build" in said


def test_plan_on_a_machine_without_tensorrt_or_gpu_stops(plan, capsys):
    status, out, said = bench(plan, capsys=capsys)
    assert (status, out) == (3, "")
    assert "expected the Python package 'tensorrt'" in said or "NVIDIA GPU" in said


@pytest.mark.parametrize(
    ("target", "words", "status", "said"),
    [
        ("bundle", ("--provider", "cuda"), 3, "CUDAExecutionProvider"),
        ("bundle", ("--memory", "mapped"), 2, "a plan with --memory"),
        ("m.plan", ("--form", "int8"), 2, "a plan, which has one form"),
        ("m.plan", ("--provider", "cuda"), 2, "a plan, which has one form"),
        ("none", (), 2, "No such file"),
        ("bundle/model.int8.onnx", (), 2, "a plan as `edge build` writes it"),
    ],
)
def test_what_cannot_be_measured_says_why(plan, capsys, target, words, status, said):  # noqa: PLR0917
    found, out, err = bench(plan.parent / target, *words, capsys=capsys)
    assert (found, out) == (status, "")
    assert said in err


def test_threads_without_end_are_refused_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", str(tmp_path), "--threads", "100000"])
    assert ended.value.code == 2
    assert "100000 is above" in capsys.readouterr().err
