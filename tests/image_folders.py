"""Small image folders for the import tests: real pictures, readings and tables on disk."""

import csv
import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

READINGS = 64


def write_image(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> None:
    """Write a picture of noise that follows from the path's name, so that names differ in bytes."""
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


def write_readings(path: Path, channels: int = 2, readings: int = READINGS) -> None:
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, rng.normal(size=(channels, readings)).astype(np.float32))


def write_mask(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    mask[5:9, 6:12] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def plain_rows(count: int = 30, *, sensor: bool = True, parts: int = 10) -> list[dict[str, str]]:
    """Rows of `parts` parts in turn, every third sample a `dent`."""
    rows = []
    for index in range(count):
        row = {"file_name": f"images/{index:03d}.png", "label": "dent" if index % 3 == 2 else "ok"}
        row["part_id"] = f"p{index % parts}"
        if sensor:
            row["sensor_file_name"] = f"sensors/{index:03d}.npy"
        rows.append(row)
    return rows


def write_folder(folder: Path, rows: list[dict[str, str]], kind: str = "csv") -> Path:
    """Write the files that `rows` name, and the table. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        write_image(folder / row["file_name"])
        if row.get("sensor_file_name"):
            write_readings(folder / row["sensor_file_name"])
        if row.get("mask_file_name"):
            write_mask(folder / row["mask_file_name"])
    write_table(folder, rows, kind)
    return folder


def write_table(folder: Path, rows: list[dict[str, str]], kind: str = "csv") -> None:
    path = folder / f"metadata.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` by relative path, to compare two trees byte for byte."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
