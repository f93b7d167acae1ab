"""The plan from a bundle, by NVIDIA's own builder: TensorRT-RTX ahead of time, no GPU needed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from gpu_stand_in import IDENTITY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from small_station import spec_of, write_bundle, write_model

from edge.artefact import digest_of_file
from edge.bundle import FP32_FILE, INT8_FILE, Bundle, entries_of, write_manifest
from edge.errors import AnswerIsNo, InputError, MachineError
from edge.plan import HEADER_BYTES, MachineIdentity, Plan
from export import build as module
from export import builder_call, builder_process
from export.build import BuildOrder, plan_from_bundle
from export.tensorrt_library import flavours_here

needs_rtx = pytest.mark.skipif(
    "tensorrt_rtx" not in flavours_here(), reason="TensorRT-RTX is NOT here: no plan was built"
)
AHEAD = BuildOrder(flavour="tensorrt_rtx", compute_capability="8.6")
NOWHERE = MachineIdentity()
PLENTY = 64 << 30


def build(bundle: Bundle, out, order: BuildOrder = AHEAD, **options):
    options = {"here": NOWHERE, "free_bytes": PLENTY, **options}
    return plan_from_bundle(bundle, out, order, **options)


def with_model(folder, content: bytes) -> Bundle:
    """A bundle, whole by its digests, whose INT8 model is `content`."""
    bundle = write_bundle(folder)
    (folder / INT8_FILE).write_bytes(content)
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, files=entries_of(folder)))
    return Bundle.open(folder)


@needs_rtx
def test_plan_is_built_stamped_and_found_whole(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    events = []
    built = build(bundle, tmp_path / "model.plan", on_progress=events.append)
    plan = Plan.open(tmp_path / "model.plan")
    assert plan.stamp == built.stamp
    assert plan.stamp.bundle_digest == bundle.digest
    assert plan.stamp.spec == spec_of()
    assert (plan.stamp.form, plan.stamp.flavour) == ("int8", "tensorrt_rtx")
    assert plan.stamp.built_for == MachineIdentity(compute_capability="8.6")
    assert plan.stamp.tensorrt[0].isdigit()
    with plan.bytes() as content:
        assert len(content) == plan.stamp.plan_bytes > 1000
    assert built.peak_bytes > 50e6
    assert events[0]["phase"] == "Building engine"
    assert any(event.get("ended") for event in events)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "model.plan"]


@needs_rtx
def test_form_can_be_chosen_and_an_existing_plan_is_replaced_only_when_told(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    out = tmp_path / "model.plan"
    build(bundle, out)
    with pytest.raises(InputError, match="existing output"):
        build(bundle, out)
    fp32 = BuildOrder(form="fp32", flavour="tensorrt_rtx", compute_capability="8.6")
    assert build(bundle, out, fp32, force=True).stamp.form == "fp32"
    out.write_bytes(b"a photograph")
    with pytest.raises(InputError, match="same kind"):
        build(bundle, out, force=True)
    assert out.read_bytes() == b"a photograph"


@needs_rtx
def test_operator_that_the_parser_lacks_is_named_with_the_next_step(tmp_path):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"], name="head/Det")],
        "g",
        [info("x", onnx.TensorProto.FLOAT, [3, 3])],
        [info("y", onnx.TensorProto.FLOAT, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    bundle = with_model(tmp_path / "bundle", model.SerializeToString())
    with pytest.raises(AnswerIsNo, match=r"refused: Det head/Det.*compile check"):
        build(bundle, tmp_path / "model.plan")
    assert not (tmp_path / "model.plan").exists()


def small_model(folder) -> bytes:
    write_model(folder / "small.onnx", spec_of())
    return (folder / "small.onnx").read_bytes()


@needs_rtx
def test_file_that_kills_nvidias_parser_kills_nothing_else(tmp_path):
    """Found by changing bytes: TensorRT-RTX 1.7's parser dies of a node that has no output."""
    model = onnx.load_from_string(small_model(tmp_path))
    next(node for node in model.graph.node if "raw" in node.output).ClearField("output")
    bundle = with_model(tmp_path / "bundle", model.SerializeToString())
    with pytest.raises(AnswerIsNo, match=r"SIGSEGV|refused"):
        build(bundle, tmp_path / "model.plan")
    assert not (tmp_path / "model.plan").exists()


@needs_rtx
def test_name_that_is_no_text_is_shown_as_the_bytes_it_is(tmp_path):
    content = small_model(tmp_path).replace(b"Reshape", b"Reshap\xff")
    bundle = with_model(tmp_path / "bundle", content)
    with pytest.raises(AnswerIsNo, match=r"refused: b'Reshap\\xff'"):
        build(bundle, tmp_path / "model.plan")


@needs_rtx
@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_hostile_onnx_of_right_digest_is_an_error_and_leaves_no_plan(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("hostile")
    whole = write_bundle(folder / "whole")
    content = bytearray((whole.folder / INT8_FILE).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    bundle = with_model(folder / "bundle", bytes(content))
    try:
        build(bundle, folder / "model.plan")
    except (InputError, AnswerIsNo):
        assert not (folder / "model.plan").exists()
    else:
        Plan.open(folder / "model.plan")
    assert len(list(folder.iterdir())) <= 3, "nothing else was written"


@needs_rtx
def test_gpu_that_cannot_be_built_for_names_those_that_can(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    order = BuildOrder(flavour="tensorrt_rtx", compute_capability="8.7")
    with pytest.raises(InputError, match=r"--compute-capability 8\.7: expected one of .*8\.6"):
        build(bundle, tmp_path / "model.plan", order)


@needs_rtx
def test_dla_that_is_not_there_is_the_machines_lack(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    order = BuildOrder(flavour="tensorrt_rtx", compute_capability="8.6", dla_core=0)
    with pytest.raises(MachineError, match="a DLA of that number, found 0 here"):
        build(bundle, tmp_path / "model.plan", order)


def built_with_cache(bundle: Bundle, folder: Path, cache: Path) -> dict:
    """Have the real builder's process build with a timing cache; return its last word.

    TensorRT-RTX takes and gives one, though it measures nothing.
    """
    request = {
        "flavour": "tensorrt_rtx",
        "onnx": str(bundle.folder / INT8_FILE),
        "out": str(folder / "raw.plan"),
        "skip": HEADER_BYTES,
        "timing_cache": str(cache),
        "workspace_bytes": 1 << 28,
        "dla_core": None,
        "compute_capability": "8.6",
    }
    done = subprocess.run(
        [sys.executable, "-m", "export.builder_process", json.dumps(request)],
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@needs_rtx
def test_timing_cache_is_read_and_written_even_where_it_is_rubbish(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    cache = tmp_path / "timing"
    reports = [built_with_cache(bundle, tmp_path, cache) for _ in range(2)]
    cache.write_bytes(b"rubbish")
    reports.append(built_with_cache(bundle, tmp_path, cache))
    assert [report["outcome"] for report in reports] == ["built"] * 3
    assert reports[0]["cached_bytes"] == 0
    assert reports[1]["cached_bytes"] == reports[0]["cache_bytes"] == cache.stat().st_size


@needs_rtx
def test_plan_is_kept_though_its_timing_cache_cannot_be(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    report = built_with_cache(bundle, tmp_path, tmp_path / "gone" / "timing")
    assert (report["outcome"], report["cache_bytes"]) == ("built", 0)
    assert report["cache_problem"] == "No such file or directory"
    assert (tmp_path / "raw.plan").stat().st_size > HEADER_BYTES


@pytest.mark.parametrize(
    ("cache", "found"), [("gone/timing", "no such folder"), ("bundle", "found a folder")]
)
def test_timing_cache_that_cannot_be_kept_is_refused_before_the_building(
    tmp_path, monkeypatch, cache, found
):
    monkeypatch.setattr(module, "flavours_here", lambda: ("tensorrt",))
    bundle = write_bundle(tmp_path / "bundle")
    order = BuildOrder(timing_cache=tmp_path / cache)
    with pytest.raises(InputError, match=f"--timing-cache .*{found}"):
        build(bundle, tmp_path / "model.plan", order, here=IDENTITY)


# ---- Refused before the builder starts. ----------------------------------------------------------


def test_too_little_memory_says_how_much_and_how_to_free_some(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(MachineError, match=r"GB of free memory.*found 0\.3 GB.*drop_caches"):
        plan_from_bundle(
            *(bundle, tmp_path / "model.plan", BuildOrder(flavour="tensorrt_rtx")),
            here=IDENTITY,
            free_bytes=300 << 20,
        )


@pytest.mark.parametrize(
    ("free_bytes", "workspace_mb"),
    [(None, 128), (768 << 20, 128), (2 << 30, 768), (64 << 30, 4096)],
)
def test_workspace_takes_half_of_what_is_left_within_bounds(tmp_path, free_bytes, workspace_mb):
    bundle = write_bundle(tmp_path / "bundle")
    found = module._workspace_for(bundle.folder / INT8_FILE, free_bytes) / (1 << 20)
    assert found == pytest.approx(workspace_mb, abs=1)


def test_machine_without_a_gpu_builds_nothing_that_it_was_not_told_to(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "flavours_here", lambda: ("tensorrt_rtx",))
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(MachineError, match=r"an NVIDIA GPU to build for.*--compute-capability"):
        build(bundle, tmp_path / "model.plan", BuildOrder())


@pytest.mark.parametrize(
    ("order", "kind", "said"),
    [
        (BuildOrder(form="int9"), InputError, "Did you mean 'int8'"),
        (BuildOrder(flavour="tensorrt"), MachineError, "only tensorrt_rtx"),
        (BuildOrder(form="fp16"), InputError, "no entry for 'model.fp16.onnx'"),
    ],
)
def test_order_that_cannot_be_met_says_why(tmp_path, monkeypatch, order, kind, said):
    monkeypatch.setattr(module, "flavours_here", lambda: ("tensorrt_rtx",))
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(kind, match=said):
        build(bundle, tmp_path / "model.plan", order, here=IDENTITY)


def test_tensorrt_builds_for_the_gpu_that_is_here_only(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "flavours_here", lambda: ("tensorrt",))
    bundle = write_bundle(tmp_path / "bundle")
    order = BuildOrder(compute_capability="8.7")
    with pytest.raises(InputError, match="TensorRT builds for the GPU that is here"):
        build(bundle, tmp_path / "model.plan", order, here=IDENTITY)


def test_one_changed_byte_of_the_bundle_is_refused(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    content = bytearray((bundle.folder / INT8_FILE).read_bytes())
    content[100] ^= 1
    (bundle.folder / INT8_FILE).write_bytes(content)
    with pytest.raises(InputError, match="SHA-256"):
        build(bundle, tmp_path / "model.plan", here=IDENTITY)


def a_builder(monkeypatch, tmp_path, body: str) -> None:
    """Put a program in the builder's place, for what the real one cannot be made to do."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport os, signal, sys\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(builder_call.sys, "executable", str(script))
    monkeypatch.setattr(module, "flavours_here", lambda: ("tensorrt_rtx",))


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", MachineError, "memory is out.*drop_caches"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", AnswerIsNo, "broke down: SIGSEGV"),
        ("sys.stderr.write('Ouch'); sys.exit(7)", AnswerIsNo, r"exit status 7 \(Ouch\)"),
        ("print('no JSON'); print('[1]')", AnswerIsNo, "exit status 0"),
        (
            'print(\'{"outcome": "not loaded", "reason": "libcuda.so.1"}\')',
            MachineError,
            "libcuda.so.1.*driver",
        ),
    ],
)
def test_builder_that_breaks_down_is_an_answer_and_leaves_no_plan(
    tmp_path, monkeypatch, body, kind, said
):
    bundle = write_bundle(tmp_path / "bundle")
    a_builder(monkeypatch, tmp_path, body)
    with pytest.raises(kind, match=said):
        build(bundle, tmp_path / "model.plan")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "python"]


def test_builder_that_never_ends_is_ended(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "bundle")
    a_builder(monkeypatch, tmp_path, "print(os.getpid(), flush=True); signal.pause()")
    monkeypatch.setattr(builder_call, "_LIMIT_S", 0.5)
    with pytest.raises(MachineError, match="killed"):
        build(bundle, tmp_path / "model.plan")


def test_builder_ends_with_who_asked_for_it(tmp_path, monkeypatch):
    bundle = write_bundle(tmp_path / "bundle")
    a_builder(
        monkeypatch,
        tmp_path,
        'print(\'{"phase": "p", "steps": %d}\' % os.getpid(), flush=True); signal.pause()',
    )
    started = []

    def interrupt(event):
        started.append(event["steps"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(bundle, tmp_path / "model.plan", on_progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], signal.SIGCONT)


def test_builder_gives_up_when_who_asked_is_gone(monkeypatch, capsys):
    class Bindings:
        class IProgressMonitor:
            pass

    monitor = builder_process._monitor(Bindings)
    assert monitor.step_complete("phase", 0)
    monkeypatch.setattr(builder_process.os, "getppid", lambda: monitor.asked_by + 1)
    assert not monitor.step_complete("phase", 1)
    capsys.readouterr()


def test_strong_typing_is_asked_for_where_it_is_still_a_choice():
    class Old:
        class NetworkDefinitionCreationFlag:
            STRONGLY_TYPED = 2

    class New:
        class NetworkDefinitionCreationFlag:
            pass

    assert builder_process._flags(Old) == 4
    assert builder_process._flags(New) == 0


def test_builders_room_imports_none_of_the_hosts_packages():
    absent = ("torch", "onnx", "onnxruntime", "distill", "scipy", "tensorrt", "device_agents")
    code = (
        f"import sys\nfor name in {absent!r}: sys.modules[name] = None\n"
        "import export.build, export.builder_process, export.bench, export.tensorrt_library"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""


@needs_rtx
def test_weights_beside_the_file_are_found_by_the_builder(tmp_path):
    """A model over 2 GB keeps its weights so; a small one shows that they are read."""
    folder = tmp_path / "bundle"
    bundle = write_bundle(folder)
    model = onnx.load(folder / INT8_FILE)
    weights = np.zeros((3,), np.float32)
    mix = next(tensor for tensor in model.graph.initializer if tensor.name == "mix")
    weights[...] = onnx.numpy_helper.to_array(mix)[0]
    (folder / f"{INT8_FILE}.data").write_bytes(weights.tobytes())
    mix.ClearField("raw_data")
    mix.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", f"{INT8_FILE}.data"), ("length", "12")):
        mix.external_data.add(key=key, value=value)
    (folder / INT8_FILE).write_bytes(model.SerializeToString())
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, files=entries_of(folder)))
    build(Bundle.open(folder), tmp_path / "model.plan")
    (folder / f"{INT8_FILE}.data").unlink()
    with pytest.raises(InputError, match="missing"):
        build(Bundle.open(folder), tmp_path / "other.plan")
    assert digest_of_file(folder / FP32_FILE) == bundle.manifest.files[FP32_FILE].sha256
