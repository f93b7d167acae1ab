"""A folder in the MVTec AD layout becomes a recording: `edge import mvtec`.

    DIR/train/good/*              normal parts
    DIR/test/good/*               normal parts
    DIR/test/<defect>/*           defective parts; the folder's name is the label
    DIR/ground_truth/<defect>/*   NAME_mask.png for test/<defect>/NAME.*
    DIR/validation/good/*         normal parts, where the set has them (later sets do)

A threshold needs normal parts that no training saw. Where there is no `validation`, every fifth of
train/good, in the order of a seeded hash of its bytes, becomes the split `val`.

Source of the layout: Bergmann et al., "MVTec AD", CVPR 2019, and the readme in its archive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.errors import InputError
from edge.recording.format import (
    FILES_FOLDER,
    Recording,
    RecordingHeader,
    SampleRow,
    write_recording,
)
from edge.recording.originals import Originals
from edge.recording.splits import seeded_order
from edge.recording.track import Track

NORMAL = "good"
VAL_SHARE = 0.20
FOLDERS = {"train": "train", "validation": "val", "test": "test"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class _Picture:
    path: Path
    split: str
    label: str


def import_mvtec(
    source: Path, out: Path, parts_per_second: float, track: Track = iter
) -> tuple[Recording, tuple[str, ...]]:
    """Fill the empty folder `out` (see `artefact.new_folder`); return the recording and remarks."""
    pictures = list(_pictures(source))
    _check_layout(source, pictures)
    originals = Originals(source, out / FILES_FOLDER)
    rows = [_sample_row(source, picture, originals) for picture in track(pictures)]
    remarks = _remarks(source, rows)
    if not any(row.split == "val" for row in rows):
        rows = _with_val(rows, source)
        remarks.append(f"{VAL_SHARE:.0%} of train/{NORMAL} held out as 'val', by a seeded hash.")
    defects = sorted({row.label for row in rows} - {NORMAL})
    header = RecordingHeader(
        name=source.resolve().name,
        channels=(),
        classes=(NORMAL, *defects),
        parts_per_second=parts_per_second,
        source=f"edge import mvtec, {len(rows)} images",
    )
    write_recording(out, header, rows)
    return Recording(out, header, tuple(rows)), tuple(remarks)


def _pictures(source: Path) -> Iterator[_Picture]:
    for folder, split in FOLDERS.items():
        labels = [NORMAL] if split != "test" else _folder_names(source / folder)
        for label in labels:
            for path in _images_in(source / folder / label):
                yield _Picture(path, split, label)


def _check_layout(source: Path, pictures: list[_Picture]) -> None:
    normals = sum(1 for picture in pictures if picture.split == "train")
    if normals >= 2:
        return
    categories = [
        name for name in _folder_names(source) if (source / name / "train" / NORMAL).is_dir()
    ]
    raise InputError(
        where=source,
        expected=f"the MVTec AD layout, with images in train/{NORMAL}",
        found=f"{normals} images there" if source.is_dir() else "no such folder",
        do=f"Name one category: {', '.join(str(source / name) for name in categories)}."
        if categories
        else "Check the path; for a folder with a metadata table use `edge import folder`.",
    )


def _sample_row(source: Path, picture: _Picture, originals: Originals) -> SampleRow:
    relative = picture.path.relative_to(source)
    image, digest = originals.copy(relative.as_posix(), relative.as_posix())
    mask = None
    found = source / "ground_truth" / picture.label / f"{picture.path.stem}_mask.png"
    if picture.label != NORMAL and found.is_file():
        mask, _ = originals.copy(found.relative_to(source).as_posix(), relative.as_posix())
    sample_id = relative.with_suffix("").as_posix()
    return SampleRow(
        sample_id=sample_id,
        image=image,
        image_digest=digest,
        label=picture.label,
        split=picture.split,
        part_id=sample_id,
        mask=mask,
    )


def _with_val(rows: list[SampleRow], source: Path) -> list[SampleRow]:
    """Move a fifth of the train images to `val`; copies of one image stay together."""
    digests = sorted({row.image_digest for row in rows if row.split == "train"})
    if len(digests) < 2:
        raise InputError(
            where=source / "train" / NORMAL,
            expected="at least two different images, to hold one out for the threshold",
            found=f"{len(digests)}",
            do="Add normal images.",
        )
    held_out = set(seeded_order(digests, seed=0)[: math.ceil(VAL_SHARE * len(digests))])
    return [
        msgspec.structs.replace(row, split="val")
        if row.split == "train" and row.image_digest in held_out
        else row
        for row in rows
    ]


def _remarks(source: Path, rows: list[SampleRow]) -> list[str]:
    remarks = []
    without = sum(1 for row in rows if row.label != NORMAL and row.mask is None)
    if without:
        remarks.append(f"{without} defect images have no mask in ground_truth.")
    strange = [
        f"{folder}/{name}"
        for folder in ("train", "validation")
        for name in _folder_names(source / folder)
        if name != NORMAL
    ]
    if strange:
        remarks.append(f"Left out, as only '{NORMAL}' is expected there: {', '.join(strange)}.")
    return remarks


def _folder_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
