"""What is no run: each is called what it is."""

from pathlib import Path

import pytest

from distill.checkpoint import read_record
from edge.errors import InputError


def refusal_of(folder: Path) -> str:
    with pytest.raises(InputError) as refused:
        read_record(folder)
    assert refused.value.where.startswith(str(folder))
    return refused.value.found


@pytest.mark.parametrize(
    ("file", "content", "found"),
    [
        ("recording.json", "{}", "a recording"),
        ("manifest.json", "{}", "a bundle"),
        ("notes.txt", "", "a folder without run.json"),
        ("run.json", '{"schema": 2,', "a run.json that is not the JSON of a record"),
        ("run.json", '{"schema": "\udcff"}', "a run.json that is not the JSON of a record"),
        ("run.json", "[]", "a run.json that is not the JSON of a record"),
        ("run.json", '{"schema": 1}', "schema 1"),
    ],
)
def test_another_folder_is_called_what_it_is(tmp_path: Path, file: str, content: str, found: str):
    (tmp_path / file).write_bytes(content.encode(errors="surrogateescape"))
    assert refusal_of(tmp_path) == found


def test_a_record_of_another_form_names_what_is_wrong(tmp_path: Path):
    (tmp_path / "run.json").write_text('{"schema": 2, "colour": "red"}')
    found = refusal_of(tmp_path)
    assert found.startswith("a run.json of another form (Object ")
    assert "field" in found


def test_a_run_under_way_is_to_be_gone_on_with(tmp_path: Path):
    assert refusal_of(tmp_path / "run") == "no such folder"
    (tmp_path / "run.unfinished").mkdir()
    assert refusal_of(tmp_path / "run.unfinished").startswith("a run not yet finished (go on with")
    found = refusal_of(tmp_path / "run")
    assert found.startswith(f"no such folder; a run not yet finished is {tmp_path}/run.unfinished")
    assert "--resume" in found
    (tmp_path / "file").touch()
    assert refusal_of(tmp_path / "file") == "a file"
