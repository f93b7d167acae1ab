"""Outputs appear whole or not at all, whatever happens while they are written."""

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge.artefact import beside, check_free, digest_of_bytes, digest_of_file, new_file, new_folder
from edge.errors import InputError, MachineError

FULL_DISK = Path("/dev/full")  # every write to it fails for want of room


class Stopped(Exception):
    """What happens in the middle of writing."""


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole(tmp_path):
    with new_folder(tmp_path / "deep" / "out") as partial:
        (partial / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "a").read_text() == "1"
    assert names_in(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("make", [new_folder, new_file])
def test_an_error_in_the_middle_leaves_nothing(tmp_path, make):
    with pytest.raises(Stopped), make(tmp_path / "out"):
        raise Stopped
    assert names_in(tmp_path) == []


def test_an_error_in_the_middle_keeps_the_old_output(tmp_path):
    with new_folder(tmp_path / "out") as partial:
        (partial / "old").touch()
    with pytest.raises(Stopped), new_folder(tmp_path / "out", force=True) as partial:
        raise Stopped
    assert names_in(tmp_path / "out") == ["old"]
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("make", [new_folder, new_file])
def test_an_existing_output_is_refused_before_any_work(tmp_path, make):
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="--force"), make(tmp_path / "out"):
        pytest.fail("the work began")


def test_a_dangling_link_counts_as_existing(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="existing output"):
        check_free(tmp_path / "out")


def test_force_replaces_folder_and_file(tmp_path):
    for text in ("old", "new"):
        with new_folder(tmp_path / "out", force=True) as partial:
            (partial / text).touch()
        with new_file(tmp_path / "file", force=True) as partial:
            partial.write_text(text)
    assert names_in(tmp_path / "out") == ["new"]
    assert (tmp_path / "file").read_text() == "new"
    assert names_in(tmp_path) == ["file", "out"]


def test_force_with_a_mark_replaces_only_what_bears_it(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").touch()
    with (
        pytest.raises(InputError, match="deletes nothing"),
        new_folder(tmp_path / "out", force=True, mark="recording.json"),
    ):
        pytest.fail("the work began")
    (tmp_path / "out" / "recording.json").touch()
    with new_folder(tmp_path / "out", force=True, mark="recording.json"):
        pass
    assert names_in(tmp_path / "out") == []


def test_a_process_killed_in_the_middle_leaves_no_output(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom edge.artefact import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as partial:\n"
        "    (partial / 'half').write_text('half')\n    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with new_folder(out) as partial:
        (partial / "whole").touch()
    assert names_in(out) == ["whole"]


def test_a_file_in_the_way_of_a_folder_is_the_inputs_fault(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Choose another --out"), new_folder(tmp_path / "file/out"):
        pytest.fail("the work began")


def test_a_name_too_long_is_the_inputs_fault(tmp_path):
    with (
        pytest.raises(InputError, match="Choose another --out"),
        new_folder(tmp_path / ("x" * 400)),
    ):
        pytest.fail("the work began")


@pytest.mark.skipif(not FULL_DISK.exists(), reason="no /dev/full on this machine")
def test_a_full_disk_is_the_machines_lack(tmp_path):
    with (
        pytest.raises(MachineError, match="room on the disk"),
        new_folder(tmp_path / "out"),
        FULL_DISK.open("w") as full,
    ):
        full.write("x")
    assert names_in(tmp_path) == []


def test_a_digest_of_a_file_is_the_digest_of_its_bytes(tmp_path):
    content = bytes(range(256)) * 10_000  # more than one chunk
    (tmp_path / "x").write_bytes(content)
    assert digest_of_file(tmp_path / "x") == digest_of_bytes(content)
    assert digest_of_bytes(content) == hashlib.sha256(content).hexdigest()


def test_force_replaces_a_file_only_by_one_of_its_own_kind(tmp_path):
    record = tmp_path / "run.json"
    record.write_text("{}")
    with (
        pytest.raises(InputError, match="same kind"),
        new_file(record, force=True, magic=b"\x89PNG") as partial,
    ):
        partial.write_bytes(b"\x89PNG more")
    assert record.read_text() == "{}"
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG old")
    with new_file(picture, force=True, magic=b"\x89PNG") as partial:
        partial.write_bytes(b"\x89PNG new")
    assert picture.read_bytes() == b"\x89PNG new"


def test_a_place_where_no_output_can_be_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", Path("/proc/nowhere/a.png")):
        with pytest.raises((InputError, MachineError)), new_file(path, force=True) as partial:
            partial.write_bytes(b"x")


def test_path_beside_the_folder_that_one_stands_in_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "bundle").mkdir()
    monkeypatch.chdir(tmp_path / "bundle")
    assert beside(Path("run"), ".unfinished") == Path("run.unfinished")
    assert beside(Path(), ".worst.png") == tmp_path / "bundle.worst.png"
    assert beside(Path("a/.."), ".x") == tmp_path / "bundle.x"


def make_while_another_takes_its_place(path):
    with new_folder(path) as folder:
        (folder / "made").touch()
        path.mkdir()
        (path / "mine.txt").write_text("precious")


def write_while_another_takes_its_place(path):
    with new_file(path) as partial:
        partial.write_text("made")
        path.write_text("precious")


def test_what_came_while_an_output_was_made_is_kept(tmp_path):
    """Another command, or a person, may have taken the place that was free when the work began."""
    with pytest.raises(InputError, match="nothing is yet"):
        make_while_another_takes_its_place(tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    with pytest.raises(InputError, match="nothing is yet"):
        write_while_another_takes_its_place(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_force_is_not_advised_where_it_would_refuse(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError) as refused:
        check_free(tmp_path / "photos", mark="run.json")
    assert "--force" not in str(refused.value)
