"""The reference of a real export: measured on held-out normal parts, carried by the manifest."""

import msgspec
import pytest
from export_stand_in import (
    CHANNELS,
    WIDTH,
    exported_models,
    small_recording,
    spec_of,
    write_small_bundle,
    write_small_recording,
)

from device_agents.engine.on_onnxruntime import engine_from_onnx
from device_agents.inspector.drift import LEAST, Drift
from device_agents.pairing.pair import Paired
from distill.evaluation.reference import reference_of
from edge.artefact import digest_of_bytes
from edge.bundle import Bundle, problems_of, write_manifest
from edge.errors import InputError
from edge.prepare import model_inputs
from edge.scorer import verdict_from
from export.parity import held_out_rows


@pytest.fixture(scope="module")
def int8():
    with engine_from_onnx(exported_models()[1], spec_of()) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(int8):
    return reference_of(int8, small_recording(), held_out_rows(small_recording()))


def test_reference_is_of_the_held_out_normal_parts_alone(reference):
    assert (reference.split, reference.samples, reference.parts) == ("val", 16, 16)
    assert reference.frame.longest_side == (64, 64)
    assert 0.4 < reference.frame.level.middle < 0.46  # the recording's 110 of 255
    assert [channel.name for channel in reference.channels] == [c.name for c in CHANNELS]
    assert all(-2.5 < channel.low < 0 < channel.high < 2.5 for channel in reference.channels)
    assert len(reference.embedding.mean) == WIDTH
    assert reference.scores is None  # 16 are too few for two bins
    assert "fewer than 50" in str(reference)


def test_recording_without_held_out_normal_parts_has_none(int8):
    rows = [row for row in held_out_rows(small_recording()) if row.label != "ok"]
    assert rows
    assert reference_of(int8, small_recording(), rows) is None


def test_parts_without_a_window_stand_behind_the_frames_alone(int8, tmp_path):
    recording = write_small_recording(tmp_path / "rec", {"val": 12})
    rows = [msgspec.structs.replace(row, sensor=None) for row in recording.rows]
    made = reference_of(int8, recording, rows)
    assert (made.samples, made.channels, made.embedding, made.scores) == (4, (), None, None)


def test_held_out_parts_of_the_same_line_are_no_drift_and_dimmed_ones_are(int8, reference):
    recording, spec = small_recording(), int8.spec
    normal = [row for row in recording.rows if row.label == "ok"]
    for dim, expected in ((1.0, ()), (0.7, ("exposure",))):
        drift = Drift(reference, spec)
        for number in range(LEAST + 10):
            sample = recording.read_sample(normal[number % len(normal)])
            inputs = model_inputs(sample, spec)
            scores = int8.score(inputs)
            verdict = verdict_from(scores, inputs, spec)
            pixels = sample.frame.pixels
            pixels = (pixels * dim).astype(pixels.dtype)
            frame = type(sample.frame)(pixels, 0)
            dimmed = type(sample)(sample.sample_id, frame, sample.window)
            drift.see(Paired(dimmed), scores, verdict)
        assert drift.flags == expected


def test_reference_travels_in_the_manifest_and_one_of_another_model_is_named(reference, tmp_path):
    write_small_bundle(tmp_path / "bundle")
    manifest = Bundle.open(tmp_path / "bundle").manifest
    write_manifest(tmp_path / "bundle", msgspec.structs.replace(manifest, reference=reference))
    assert Bundle.open(tmp_path / "bundle").manifest.reference == reference
    foreign = msgspec.structs.replace(reference, channels=reference.channels[:1])
    write_manifest(tmp_path / "bundle", msgspec.structs.replace(manifest, reference=foreign))
    (problem,) = problems_of(Bundle.open(tmp_path / "bundle"))
    assert problem == "manifest.json: a reference of channels drive_end, not drive_end, fan_end"
    with pytest.raises(InputError, match="the bundle's own model"):
        Drift(foreign, manifest.spec)


def test_manifest_from_before_references_still_opens(tmp_path):
    write_small_bundle(tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    before = msgspec.structs.replace(Bundle.open(tmp_path / "bundle").manifest, reference=None)
    write_manifest(tmp_path / "bundle", before)
    old = path.read_bytes().replace(b',\n  "reference": null', b"")
    assert b"reference" not in old
    seal = Bundle.open(tmp_path / "bundle").manifest.seal.encode()
    resealed = digest_of_bytes(old.replace(seal, b"")).encode()
    path.write_bytes(old.replace(seal, resealed))
    assert Bundle.open(tmp_path / "bundle").manifest.reference is None
