"""The bundle's manifest: no path outside, no changed byte, no unknown schema."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.bundle import (
    MANIFEST_FILE,
    Bundle,
    FileEntry,
    Manifest,
    Provenance,
    entries_of,
    problems_of,
    write_manifest,
)
from edge.errors import InputError
from edge.model_spec import ImageInput, ModelSpec
from edge.verdict import DecisionRule, Threshold

RULE = DecisionRule(Threshold(0.4, 0.01, 200, True))
SPEC = ModelSpec("m", ImageInput(6, 8), None, ("ok", "bad"), 3, 4, 5, RULE)
PROVENANCE = Provenance("1" * 64, "2" * 64, "3" * 64, 64, {"torch": "2.9"}, "2026-03-02T06:00:00Z")


def manifest_of(files, spec=SPEC):
    return Manifest(spec, files, (), (), (), PROVENANCE)


@pytest.fixture
def folder(tmp_path):
    """A whole bundle, but for the models' content."""
    bundle = tmp_path / "bundle"
    (bundle / "golden").mkdir(parents=True)
    (bundle / "model.fp32.onnx").write_bytes(b"weights")
    (bundle / "golden" / "1.npz").write_bytes(b"sample")
    write_manifest(bundle, manifest_of(entries_of(bundle)))
    return bundle


def test_a_whole_bundle_has_no_problems_and_gives_its_files(folder):
    bundle = Bundle.open(folder)
    assert problems_of(bundle) == []
    assert bundle.path_of("golden/1.npz").read_bytes() == b"sample"
    assert bundle.manifest.spec == SPEC


def test_a_changed_byte_a_missing_and_a_strange_file_are_each_named(folder):
    (folder / "model.fp32.onnx").write_bytes(b"weighty")
    (folder / "golden" / "1.npz").unlink()
    (folder / "stranger").touch()
    bundle = Bundle.open(folder)
    problems = problems_of(bundle)
    assert len(problems) == 3
    assert any("model.fp32.onnx: SHA-256" in problem for problem in problems)
    assert any("golden/1.npz: missing" in problem for problem in problems)
    assert any("stranger: not listed" in problem for problem in problems)
    with pytest.raises(InputError, match="edge verify"):
        bundle.path_of("model.fp32.onnx")


def test_a_file_that_the_manifest_does_not_list_is_not_given(folder):
    (folder / "stranger").touch()
    with pytest.raises(InputError, match="no entry for 'stranger'"):
        Bundle.open(folder).path_of("stranger")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "a\\b", ""])
def test_a_manifest_that_names_a_file_outside_is_refused(folder, name):
    write_manifest(folder, manifest_of({name: FileEntry("0" * 64, 1)}))
    with pytest.raises(InputError, match="leaves the bundle"):
        Bundle.open(folder)


@pytest.mark.parametrize("linked", ["golden/1.npz", "golden"])
def test_a_link_out_of_the_bundle_is_not_followed(folder, tmp_path, linked):
    secret = tmp_path / "secret"
    (folder / linked).rename(secret)
    (folder / linked).symlink_to(secret)
    bundle = Bundle.open(folder)
    assert problems_of(bundle)
    with pytest.raises(InputError):
        bundle.path_of("golden/1.npz")


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_an_unknown_schema_is_refused(folder, schema):
    path = folder / MANIFEST_FILE
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "schema": schema}))
    with pytest.raises(InputError, match="bundle schema 1"):
        Bundle.open(folder)


def test_a_spec_without_a_rule_cannot_judge_and_is_refused(folder):
    write_manifest(folder, manifest_of({}, msgspec.structs.replace(SPEC, rule=None)))
    with pytest.raises(InputError, match="decision rule"):
        Bundle.open(folder)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match=r"a folder without manifest\.json.*edge export"):
        Bundle.open(tmp_path)
    with pytest.raises(InputError, match="No such file or directory"):
        Bundle.open(tmp_path / "gone")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(folder, content):
    (folder / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(InputError):
        Bundle.open(folder)


@given(place=st.floats(0, 1), byte=st.integers(0, 255))
def test_no_changed_byte_of_the_manifest_goes_unnoticed(tmp_path_factory, place, byte):
    folder = tmp_path_factory.mktemp("bundle")
    write_manifest(folder, manifest_of({}))
    path = folder / MANIFEST_FILE
    content = bytearray(path.read_bytes())
    index = int(place * (len(content) - 1))
    if content[index] == byte:
        return
    content[index] = byte
    path.write_bytes(content)
    with pytest.raises(InputError):
        Bundle.open(folder)
