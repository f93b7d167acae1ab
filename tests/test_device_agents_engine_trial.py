"""A hostile ONNX file is tried elsewhere first, and harms nobody there."""

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from small_station import spec_of, write_bundle, write_model

from device_agents.engine import trial as module
from device_agents.engine.load import engine_from_bundle
from device_agents.engine.trial import try_onnx
from edge.artefact import digest_of_bytes
from edge.bundle import INT8_FILE, MANIFEST_FILE, Bundle, entries_of, write_manifest
from edge.cli.main import main
from edge.errors import EdgeError, InputError


def test_whole_model_survives_the_trial(tmp_path):
    write_model(tmp_path / "m.onnx", spec_of())
    try_onnx(tmp_path / "m.onnx", spec_of())


def test_what_is_wrong_comes_back_as_the_error_it_is(tmp_path):
    write_model(tmp_path / "m.onnx", spec_of(), sensor="stranger")
    with pytest.raises(InputError, match=r"m\.onnx: expected input 'sensor'.*no such tensor"):
        try_onnx(tmp_path / "m.onnx", spec_of())


def write_memory_bomb(path, gigabytes: int) -> None:
    """A kilobyte that asks for gigabytes: a constant of that size, added to the score."""
    write_model(path, spec_of())
    model = onnx.load(path)
    size = helper.make_tensor("size", TensorProto.INT64, [1], [gigabytes << 28])
    model.graph.initializer.append(size)
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "anomaly_score":
                node.output[index] = "score_before"
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["size"], ["huge"]),
            helper.make_node("ReduceMax", ["huge"], ["nothing"], keepdims=0),
            helper.make_node("Add", ["score_before", "nothing"], ["anomaly_score"]),
        ]
    )
    onnx.save(model, path)


def test_model_that_asks_for_all_memory_is_refused_by_the_trial(tmp_path):
    write_memory_bomb(tmp_path / "m.onnx", gigabytes=12)
    assert (tmp_path / "m.onnx").stat().st_size < 5000
    with pytest.raises(InputError, match=r"a model that runs|onnxruntime"):
        try_onnx(tmp_path / "m.onnx", spec_of())


def test_model_that_never_ends_is_ended(tmp_path):
    write_model(tmp_path / "m.onnx", spec_of())
    with pytest.raises(InputError, match=r"no end after 0.01 s"):
        try_onnx(tmp_path / "m.onnx", spec_of(), limit_s=0.01)


def test_crash_in_native_code_is_an_error_by_its_signal(tmp_path, monkeypatch):
    write_model(tmp_path / "m.onnx", spec_of())
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(crash))
    with pytest.raises(InputError, match="it died of SIGSEGV"):
        try_onnx(tmp_path / "m.onnx", spec_of())


def test_verify_finds_the_memory_bomb_and_lives(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "bundle")
    write_memory_bomb(bundle.folder / INT8_FILE, gigabytes=12)
    files = entries_of(bundle.folder)
    write_manifest(bundle.folder, msgspec.structs.replace(bundle.manifest, files=files))
    assert main(["verify", str(bundle.folder)]) == 1
    assert "model.int8.onnx: expected" in capsys.readouterr().out


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_onnx_with_changed_bytes_and_right_digests_never_crashes_the_engine(tmp_path_factory, data):
    """In this very process: thousands of such files were loaded so while this was written."""
    folder = tmp_path_factory.mktemp("hostile")
    bundle = write_bundle(folder / "bundle")
    content = bytearray((bundle.folder / INT8_FILE).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    (bundle.folder / INT8_FILE).write_bytes(content)
    files = entries_of(bundle.folder)
    write_manifest(bundle.folder, msgspec.structs.replace(bundle.manifest, files=files))
    before = sorted(folder.iterdir())
    try:
        with engine_from_bundle(Bundle.open(bundle.folder), threads=1) as engine:
            spec = engine.spec
            engine.score({t.name: np.zeros(t.shape, t.dtype) for t in spec.inputs()})
    except InputError:
        pass
    assert sorted(folder.iterdir()) == before


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_manifest_with_changed_bytes_and_a_fitting_seal_reads_nothing_outside(
    tmp_path_factory, data
):
    """The seal keeps accidents out; here it is made to fit, so the content itself is looked at."""
    folder = tmp_path_factory.mktemp("manifest")
    bundle = write_bundle(folder / "bundle")
    path = bundle.folder / MANIFEST_FILE
    blank = path.read_bytes().replace(bundle.manifest.seal.encode(), b"")
    content = bytearray(blank)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + 1] = data.draw(
            st.sampled_from([b"9", b"-", b"0", b'"', b"/", b"..", b"null", b"\\u0000", b"e9"])
        )
    seal = digest_of_bytes(bytes(content)).encode()
    path.write_bytes(bytes(content).replace(b'"seal": ""', b'"seal": "' + seal + b'"'))
    try:
        opened = Bundle.open(bundle.folder)
        with engine_from_bundle(opened, threads=1):
            pass
    except EdgeError:
        pass
