"""`edge verify` against whole bundles, damaged ones, and ones made to do harm."""

import os
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from export_stand_in import write_small_bundle

from edge.artefact import digest_of_file
from edge.bundle import MANIFEST_FILE, Bundle, FileEntry, entries_of, write_manifest
from edge.cli.main import main
from edge.errors import EdgeError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "bundle"
    write_small_bundle(folder)
    return folder


@pytest.fixture
def bundle(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "bundle")


def verify(folder, capsys):
    status = main(["verify", str(folder)])
    told = capsys.readouterr()
    return status, told.out, told.err


def rewrite(folder, **changes):
    """Write the manifest again with other content, sealed as ours are: made with intent."""
    manifest = Bundle.open(folder).manifest
    write_manifest(folder, msgspec.structs.replace(manifest, **changes))


def test_whole_bundle_says_what_was_checked(bundle, capsys):
    status, out, err = verify(bundle, capsys)
    assert (status, err) == (0, "")
    for line in ("manifest.json", "10 files", "model.int8.onnx", "8 golden samples", "Whole:"):
        assert line in out


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.fp32.onnx", "golden/03.npz"])
def test_one_changed_byte_is_named(bundle, capsys, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    status, out, err = verify(bundle, capsys)
    assert status == 1
    assert f"{name}: SHA-256" in out
    assert name in err


def test_any_changed_byte_of_the_manifest_is_noticed(bundle, capsys):
    whole = (bundle / MANIFEST_FILE).read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        for change in (1, 16):
            content = bytearray(whole)
            content[position] ^= change
            (bundle / MANIFEST_FILE).write_bytes(content)
            with pytest.raises(EdgeError):
                Bundle.open(bundle)
    status, _, err = verify(bundle, capsys)
    assert status == 1
    assert err.startswith("edge: ")


def test_changed_threshold_is_noticed(bundle, capsys):
    content = (bundle / MANIFEST_FILE).read_bytes()
    assert content.count(b'"value": 0.5') == 1
    (bundle / MANIFEST_FILE).write_bytes(content.replace(b'"value": 0.5', b'"value": 0.9'))
    status, _, err = verify(bundle, capsys)
    assert status == 1
    assert "seal" in err


def test_every_problem_is_named_not_the_first_alone(bundle, capsys):
    (bundle / "golden/01.npz").unlink()
    (bundle / "notes.txt").write_text("a stranger")
    with (bundle / "model.fp32.onnx").open("ab") as file:
        file.write(b"tail")
    status, out, err = verify(bundle, capsys)
    assert status == 1
    for problem in ("golden/01.npz: missing", "notes.txt: not listed", "model.fp32.onnx: "):
        assert problem in out
        assert problem in err


@pytest.mark.parametrize("path", ["nothing-here", "."])
def test_path_that_is_no_bundle_is_bad_input(tmp_path, capsys, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    status, out, err = verify(path, capsys)
    assert (status, out) == (2, "")
    assert "expected a bundle" in err


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1, 2]",
        b'{"schema": 1}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"schema": 1, "files": "' + b"x" * (9 << 20) + b'"}',
    ],
    ids=["empty", "cut", "list", "bare", "binary", "deep", "huge"],
)
def test_broken_manifest_is_one_paragraph(bundle, capsys, content):
    (bundle / MANIFEST_FILE).write_bytes(content)
    status, out, err = verify(bundle, capsys)
    assert (status, out) == (1, "")
    assert err.startswith("edge: ")
    assert err.count("\n") == 1
    assert len(err) < 1000


def test_unknown_schema_is_said_by_its_number(bundle, capsys):
    rewrite(bundle, schema=7)
    status, _, err = verify(bundle, capsys)
    assert status == 1
    assert "expected bundle schema 1, found schema 7" in err


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "golden/../../x", "a\\..\\b", ""])
def test_file_name_that_leaves_the_bundle_is_refused_before_it_is_read(bundle, capsys, name):
    files = Bundle.open(bundle).manifest.files
    rewrite(bundle, files={**files, name: FileEntry("0" * 64, 1)})
    status, _, err = verify(bundle, capsys)
    assert status == 1
    assert "leaves the bundle" in err


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0", "golden", ".", MANIFEST_FILE])
def test_file_name_that_no_disk_holds_is_a_problem_and_no_crash(bundle, capsys, name):
    files = Bundle.open(bundle).manifest.files
    rewrite(bundle, files={**files, name: FileEntry("0" * 64, 1)})
    status, _, err = verify(bundle, capsys)
    assert status == 1
    assert "problem" in err


@pytest.mark.parametrize("linked", ["golden/01.npz", "golden"])
def test_link_out_of_the_bundle_is_not_followed(bundle, tmp_path, capsys, linked):
    outside = tmp_path / "outside"
    shutil.move(bundle / linked, outside)
    (bundle / linked).symlink_to(outside)
    status, out, _ = verify(bundle, capsys)
    assert status == 1
    assert "golden/01.npz: a link" in out


def test_unlisted_link_to_a_folder_is_named(bundle, capsys):
    (bundle / "extra").symlink_to("/")
    status, out, _ = verify(bundle, capsys)
    assert status == 1
    assert "extra: not listed" in out


def test_file_of_unbelievable_size_is_refused_without_reading_it(bundle, capsys):
    os.truncate(bundle / "model.int8.onnx", 1 << 40)  # sparse: it takes no room
    status, out, _ = verify(bundle, capsys)
    assert status == 1
    assert "model.int8.onnx: 1099511627776 bytes" in out


def test_golden_sample_that_unpacks_to_more_than_its_tensors_is_refused(bundle, capsys):
    path = bundle / "golden/01.npz"
    with np.load(path) as arrays:
        tensors = dict(arrays)
    tensors["image"] = np.zeros((1, 20_000, 20_000, 3), np.uint8)[:, :8000, :8000]
    np.savez_compressed(path, **tensors)
    rewrite(bundle, files=entries_of(bundle))
    status, out, _ = verify(bundle, capsys)
    assert status == 1
    assert "'image' is larger than the model's input" in out


def test_golden_sample_that_scores_otherwise_is_named(bundle, capsys):
    golden = Bundle.open(bundle).manifest.golden
    first = msgspec.structs.replace(golden[0], anomaly_score=golden[0].anomaly_score + 0.1)
    rewrite(bundle, golden=(first, *golden[1:]))
    status, out, _ = verify(bundle, capsys)
    assert status == 1
    assert f"{first.file} ({first.sample_id}): a score differs by 0.1" in out


def test_model_of_another_spec_is_named_by_its_tensor(bundle, capsys):
    spec = Bundle.open(bundle).manifest.spec
    rewrite(bundle, spec=msgspec.structs.replace(spec, embedding_size=7))
    status, out, _ = verify(bundle, capsys)
    assert status == 1
    assert "embedding" in out


def test_listed_file_that_is_no_onnx_is_one_problem(bundle, capsys):
    path = bundle / "model.int8.onnx"
    path.write_bytes(b"not a model")
    files = Bundle.open(bundle).manifest.files
    entry = FileEntry(digest_of_file(path), path.stat().st_size)
    rewrite(bundle, files={**files, path.name: entry})
    status, out, _ = verify(bundle, capsys)
    assert status == 1
    assert "no  model.int8.onnx: loads" in out


def test_bundle_is_verified_where_neither_torch_nor_onnx_is_installed(bundle):
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'torchao', 'scipy'): sys.modules[name] = None\n"
        "from edge.cli.main import main\n"
        f"sys.exit(main(['verify', {str(bundle)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
