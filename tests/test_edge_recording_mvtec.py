"""Importing the MVTec AD layout."""

import pytest
from image_folders import tree_of, write_image, write_mask

from edge.artefact import new_folder
from edge.errors import InputError
from edge.recording.format import Recording
from edge.recording.mvtec import import_mvtec


def category(folder, normals=20):
    for index in range(normals):
        write_image(folder / f"train/good/{index:03d}.png", mode="L")
    for index in range(4):
        write_image(folder / f"test/good/t{index:03d}.png", mode="L")
        write_image(folder / f"test/hole/h{index:03d}.png", mode="L")
        write_mask(folder / f"ground_truth/hole/h{index:03d}_mask.png")
    write_image(folder / "test/bent/b000.png")
    (folder / "readme.txt").write_text("about the set")
    return folder


def imported(source, out):
    with new_folder(out) as partial:
        _, remarks = import_mvtec(source, partial, 1.0)
    return Recording.open(out), remarks


def test_folders_become_labels_and_splits_with_a_fifth_held_out(tmp_path):
    recording, remarks = imported(category(tmp_path / "bottle"), tmp_path / "rec")
    assert recording.header.classes == ("good", "bent", "hole")
    assert recording.header.channels == ()
    assert [len(recording.rows_in(split)) for split in ("train", "val", "test")] == [16, 4, 9]
    assert {row.label for row in recording.rows_in("val")} == {"good"}
    assert "20% of train/good held out as 'val'" in remarks[-1]


def test_masks_go_with_their_defects_and_a_missing_one_is_remarked(tmp_path):
    recording, remarks = imported(category(tmp_path / "bottle"), tmp_path / "rec")
    masked = [row for row in recording.rows if row.mask]
    assert {row.label for row in masked} == {"hole"}
    assert recording.read_mask(masked[0]).sum() == 24
    assert "1 defect images have no mask" in remarks[0]


def test_a_validation_folder_is_used_as_it_is(tmp_path):
    source = category(tmp_path / "bottle")
    write_image(source / "validation/good/v.png")
    recording, _ = imported(source, tmp_path / "rec")
    assert [row.sample_id for row in recording.rows_in("val")] == ["validation/good/v"]
    assert len(recording.rows_in("train")) == 20


def test_copies_of_one_image_are_held_out_together(tmp_path):
    source = category(tmp_path / "bottle")
    for index in range(0, 20, 2):
        twin = source / f"train/good/{index + 1:03d}.png"
        twin.write_bytes((source / f"train/good/{index:03d}.png").read_bytes())
    recording, _ = imported(source, tmp_path / "rec")
    train = {row.image_digest for row in recording.rows_in("train")}
    assert train.isdisjoint({row.image_digest for row in recording.rows_in("val")})


def test_importing_twice_gives_the_same_bytes(tmp_path):
    source = category(tmp_path / "bottle")
    imported(source, tmp_path / "one")
    imported(source, tmp_path / "two")
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "two")


def test_the_folder_of_all_categories_names_those_in_it(tmp_path):
    category(tmp_path / "mvtec/bottle")
    with pytest.raises(InputError, match="mvtec/bottle"):
        imported(tmp_path / "mvtec", tmp_path / "rec")


def test_a_folder_of_another_layout_is_refused(tmp_path):
    with pytest.raises(InputError, match="edge import folder"):
        imported(tmp_path, tmp_path / "out" / "rec")


def test_images_that_are_all_the_same_cannot_be_held_out(tmp_path):
    source = category(tmp_path / "bottle", normals=3)
    content = (source / "train/good/000.png").read_bytes()
    for index in (1, 2):
        (source / f"train/good/{index:03d}.png").write_bytes(content)
    with pytest.raises(InputError, match="two different images"):
        imported(source, tmp_path / "rec")


def test_defects_in_train_are_left_out_and_remarked(tmp_path):
    source = category(tmp_path / "bottle")
    write_image(source / "train/hole/x.png")
    recording, remarks = imported(source, tmp_path / "rec")
    assert all(not row.sample_id.startswith("train/hole") for row in recording.rows)
    assert any("train/hole" in remark for remark in remarks)
