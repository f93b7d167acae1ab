"""A run's folder: nothing of anybody else's is deleted, and one process alone trains in it."""

import multiprocessing
from pathlib import Path

import pytest
from small_distillation import quick_recipe

from distill.checkpoint import RECORD_FILE
from distill.training.run_folders import RunFolders, begin, finish, make_room, only_writer
from edge.errors import InputError


@pytest.fixture
def folders(tmp_path: Path) -> RunFolders:
    return RunFolders(tmp_path / "run")


def stopped(folders: RunFolders) -> None:
    """Leave a run that was stopped after some work."""
    begin(folders, quick_recipe())
    (folders.unfinished / "journal.jsonl").write_text("{}\n")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("stranger", ["folder", "file"])
def test_what_is_no_run_is_never_deleted(folders: RunFolders, force: bool, stranger: str):
    mine = folders.unfinished
    if stranger == "folder":
        mine.mkdir()
        mine = mine / "mine.txt"
    mine.write_text("precious")
    with pytest.raises(InputError, match=r"found something else\. Choose another --out"):
        make_room(folders, quick_recipe(), resume=False, force=force)
    assert mine.read_text() == "precious"


def test_stopped_run_is_kept_unless_told(folders: RunFolders):
    stopped(folders)
    with pytest.raises(InputError, match=r"Say --resume .* or --force"):
        make_room(folders, quick_recipe(), resume=False, force=False)
    make_room(folders, quick_recipe(), resume=True, force=False)
    assert folders.unfinished.is_dir()
    make_room(folders, quick_recipe(), resume=False, force=True)
    assert not folders.unfinished.exists()


def test_what_came_while_it_was_trained_is_kept_and_the_run_too(folders: RunFolders):
    stopped(folders)
    folders.final.mkdir()
    (folders.final / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match=r"--resume: all of the training is saved in .*unfinished"):
        finish(folders)
    assert (folders.final / "mine.txt").read_text() == "precious"
    assert (folders.unfinished / "journal.jsonl").is_file()


def test_finished_run_takes_the_place_of_an_earlier_one_and_keeps_no_lock(folders: RunFolders):
    folders.final.mkdir()
    (folders.final / RECORD_FILE).write_text("{}")
    with only_writer(folders):
        stopped(folders)
        finish(folders)
    assert sorted(path.name for path in folders.final.iterdir()) == ["journal.jsonl"]


def test_block_in_which_nothing_begins_leaves_nothing(folders: RunFolders):
    with only_writer(folders):
        assert folders.unfinished.is_dir()
    assert not folders.unfinished.exists()


def train_until_told(folder: Path, trains, stop) -> None:
    with only_writer(RunFolders(folder)):
        stopped(RunFolders(folder))
        trains.set()
        stop.wait(60)


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"force": True}])
def test_run_that_another_process_trains_is_left_alone(folders: RunFolders, options: dict):
    system = multiprocessing.get_context("spawn")
    trains, stop = system.Event(), system.Event()
    other = system.Process(target=train_until_told, args=(folders.final, trains, stop))
    other.start()
    try:
        assert trains.wait(60)
        room = {"resume": False, "force": False, **options}
        with pytest.raises(InputError, match="nobody is training, found another process that is"):
            make_room(folders, quick_recipe(), **room)
        with pytest.raises(InputError, match="another process that is"), only_writer(folders):
            pytest.fail("two write at once")
        assert (folders.unfinished / "journal.jsonl").is_file()
    finally:
        stop.set()
        other.join(60)
    make_room(folders, quick_recipe(), resume=True, force=False)  # now it is free
