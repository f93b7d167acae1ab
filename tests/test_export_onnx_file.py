"""Models that one ONNX file cannot hold: weights beside it, each file with its digest."""

import numpy as np
import onnx
import pytest
from export_stand_in import (
    exported_models,
    small_recording,
    spec_of,
    trained_student,
    write_small_bundle,
)
from msgspec.structs import replace

from device_agents.engine.on_onnxruntime import engine_from_onnx
from edge.bundle import FP32_FILE, Bundle, entries_of, problems_of, write_manifest
from edge.errors import InputError
from edge.onnx_weights import model_path
from edge.prepare import model_inputs
from export import onnx_file
from export.compile_check import compile_check, missing_packages
from export.onnx_graph import fp32_onnx_from_student

DATA = FP32_FILE + onnx_file.WEIGHTS_SUFFIX
MISSING = missing_packages()


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(onnx_file, "MOST_BYTES_IN_ONE_FILE", 100_000)


@pytest.fixture
def split(small_limit, tmp_path):
    model = onnx.load(exported_models()[0])
    onnx_file.save(model, tmp_path / FP32_FILE)
    return tmp_path / FP32_FILE


def test_small_model_is_one_file(tmp_path):
    onnx_file.save(onnx.load(exported_models()[0]), tmp_path / FP32_FILE)
    assert [path.name for path in tmp_path.iterdir()] == [FP32_FILE]
    assert onnx_file.files_of(tmp_path / FP32_FILE) == (tmp_path / FP32_FILE,)


def test_file_written_weight_by_weight_is_the_same_model(tmp_path):
    model = onnx.load(exported_models()[1])
    onnx_file.save(model, tmp_path / "again.onnx")
    assert onnx.load(tmp_path / "again.onnx") == model
    onnx.checker.check_model(tmp_path / "again.onnx", full_check=True)


def test_weights_written_before_the_graph_are_the_same_and_others_can_read_them(
    small_limit, tmp_path
):
    path = tmp_path / FP32_FILE
    fp32_onnx_from_student(trained_student(), spec_of(), path)
    assert (tmp_path / DATA).stat().st_mode & 0o777 == 0o644
    wanted, found = (onnx.load(one).graph.initializer for one in (exported_models()[0], path))
    whole = {one.name: onnx.numpy_helper.to_array(one) for one in wanted}
    assert whole.keys() == {one.name for one in found}
    for one in found:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(one), whole[one.name])


def test_large_model_has_its_weights_beside_it_and_scores_the_same(split):
    whole = exported_models()[0]
    assert onnx_file.files_of(split) == (split, split.with_name(DATA))
    assert split.stat().st_size < 100_000
    assert sum(p.stat().st_size for p in split.parent.iterdir()) < 1.1 * whole.stat().st_size
    spec, recording = spec_of(), small_recording()
    inputs = model_inputs(recording.read_sample(recording.rows_in("test")[0]), spec)
    with engine_from_onnx(split, spec) as ours, engine_from_onnx(whole, spec) as theirs:
        found, wanted = ours.score(inputs), theirs.score(inputs)
    assert found.anomaly_score == wanted.anomaly_score
    np.testing.assert_array_equal(found.embedding, wanted.embedding)


def test_student_is_exported_over_an_older_and_larger_export(small_limit, tmp_path):
    path = tmp_path / FP32_FILE
    (tmp_path / DATA).write_bytes(bytes(10_000_000))
    fp32_onnx_from_student(trained_student(), spec_of(), path)
    first = [file.read_bytes() for file in onnx_file.files_of(path)]
    assert len(first[1]) < 1_000_000
    fp32_onnx_from_student(trained_student(), spec_of(), path)
    assert [file.read_bytes() for file in onnx_file.files_of(path)] == first


@pytest.mark.skipif(bool(MISSING), reason=f"NVIDIA's builder is not installed here: {MISSING}")
def test_builder_finds_the_weights_beside_the_graph(split):
    check = compile_check(split)
    assert check.status == "passed"
    assert check.plan_bytes > split.stat().st_size
    assert list(check.compiled.not_fused) == ["blocks.0/Softmax", "blocks.1/Softmax"]


def test_every_file_has_its_digest_and_a_byte_that_changed_is_refused(split):
    folder = split.parent / "bundle"
    write_small_bundle(folder)
    for path in (split, split.with_name(DATA)):
        path.replace(folder / path.name)
    manifest = Bundle.open(folder).manifest
    write_manifest(folder, replace(manifest, files=entries_of(folder)))
    bundle = Bundle.open(folder)
    assert DATA in bundle.manifest.files
    assert problems_of(bundle) == []
    assert model_path(bundle, FP32_FILE) == folder / FP32_FILE
    content = bytearray((folder / DATA).read_bytes())
    content[1000] ^= 1
    (folder / DATA).write_bytes(content)
    assert problems_of(bundle)[0].startswith(f"{DATA}: SHA-256")
    with pytest.raises(InputError, match=DATA):
        model_path(bundle, FP32_FILE)
