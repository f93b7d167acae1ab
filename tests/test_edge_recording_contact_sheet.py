"""The contact sheet: a picture for people, drawn of any recording."""

import numpy as np
from image_folders import plain_rows, write_folder

from edge.artefact import new_folder
from edge.recording.contact_sheet import contact_sheet
from edge.recording.folder import FolderImport, channels_from_texts, import_folder
from edge.recording.format import Recording


def test_the_sheet_shows_more_than_background_and_is_the_same_each_time(simulated_line):
    sheet = np.asarray(contact_sheet(simulated_line))
    assert sheet.std() > 20
    assert (sheet == np.asarray(contact_sheet(simulated_line))).all()


def test_spoilt_samples_are_passed_over(tmp_path):
    source = write_folder(tmp_path / "set", plain_rows(12))
    for index in range(12):
        if index != 4:
            (source / f"images/{index:03d}.png").write_bytes(f"spoilt {index}".encode())
    np.save(source / "sensors/004.npy", np.full((2, 64), np.nan, dtype=np.float32))
    with new_folder(tmp_path / "rec") as partial:
        channels = channels_from_texts(["a:g:1", "b:g:1"])
        import_folder(FolderImport(source, channels), partial)
    assert contact_sheet(Recording.open(tmp_path / "rec")).width > 0
