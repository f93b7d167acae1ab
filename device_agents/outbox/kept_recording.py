"""Kept pictures become a recording to look at, and a table to correct: `edge import kept`.

    REC/recording.json, samples.jsonl   a recording like any other, in split `unverified` throughout
    REC/files/<inspection_id>.jpg       the pictures, windows (.npy) and heat maps (.heat_map.png)
    REC/files/metadata.csv              a row per part, for a person to correct

The labels are the station's own verdicts, and a model that learns from its own verdicts learns
its own mistakes. So no training takes split `unverified`: a person corrects the `label` column,
and `edge import folder REC/files` makes the recording to train on. What could not be judged has
no label there, and must be given one or taken out.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from device_agents.outbox.kept import Place, places_in
from device_agents.outbox.kept_part import HEAT_MAP, IMAGE, WINDOW, KeptNote, read_notes
from edge.artefact import digest_of_bytes
from edge.errors import InputError
from edge.messages import Inspection, UnreadableMessage
from edge.recording.format import (
    FILES_FOLDER,
    Recording,
    RecordingHeader,
    SampleRow,
    nanoseconds_of,
    raw_readings,
    write_recording,
)
from edge.recording.track import Track
from edge.sample import Channel

SPLIT = "unverified"
TABLE = "metadata.csv"
NOT_JUDGED = "unknown"  # the label of what was invalid, in the recording
_NORMAL = "good"  # where no part passed
_COLUMNS = (
    *("file_name", "sensor_file_name", "label", "part_id", "captured_at"),
    # Below: for the person; `edge import folder` keeps them out.
    *("verdict", "anomaly_score", "threshold", "why", "drift", "reason"),
    *("heat_map_file_name", "inspection_id", "bundle_digest"),
)


@dataclass(frozen=True)
class _Kept:
    """One part that can become a sample: it has a picture, and its files are whole."""

    place: Place
    note: KeptNote
    inspection: Inspection
    window: tuple[tuple[Channel, ...], int] | None  # channels and readings, where it has one


def recording_of_kept(
    folder: Path, out: Path, parts_per_second: float, track: Track = iter
) -> tuple[Recording, tuple[str, ...]]:
    """Fill the empty folder `out` (see `artefact.new_folder`); return the recording and remarks.

    `folder` is a station's folder of pictures or a copy of it. Raises InputError where it holds
    no part.
    """
    parts, remarks = _parts_in(folder)
    windows = Counter(part.window for part in parts if part.window is not None)
    usual = windows.most_common(1)[0][0] if windows else None
    odd = sum(windows.values()) - windows[usual] if usual else 0
    if odd:
        remarks.append(f"Windows left out, of other channels or another length: {odd}.")
    normal = next((p.inspection.label for p in parts if p.inspection.decision == "pass"), _NORMAL)
    files = out / FILES_FOLDER
    files.mkdir()
    rows = [_copied(part, files, usual) for part in track(parts)]
    _write_table(files / TABLE, parts, rows)
    defects = sorted({row.label for row in rows} - {normal})
    header = RecordingHeader(
        name=folder.resolve().name,
        channels=usual[0] if usual else (),
        classes=(normal, *defects),
        parts_per_second=parts_per_second,
        source=f"edge import kept: {len(rows)} parts as their station judged them",
    )
    write_recording(out, header, rows)
    bundles = {part.inspection.bundle_digest for part in parts}
    if len(bundles) > 1:
        remarks.append(f"The verdicts are of {len(bundles)} bundles (column bundle_digest).")
    return Recording(out, header, tuple(rows)), tuple(remarks)


def advice_for(recording: Recording, out: Path) -> str:
    """Say the next step: correct the table, and import it."""
    header = recording.header
    sensors = " ".join(f"{c.name}:{c.unit}:{c.rate_hz:g}" for c in header.channels)
    sensor = f" --sensor {sensors}" if sensors else ""
    return (
        f"The labels are the station's own verdicts. Correct them in "
        f"{out / FILES_FOLDER / TABLE}, then:\n"
        f"  edge import folder {out / FILES_FOLDER}{sensor} --ok {header.classes[0]} --out NEW"
    )


def _parts_in(folder: Path) -> tuple[list[_Kept], list[str]]:
    parts: dict[str, _Kept] = {}
    broken = without_image = 0
    for place in places_in(folder):
        try:
            note, inspection = read_notes(place.path, place.size)
            window = _window_of(place.path, note)
        except (OSError, ValueError, EOFError, msgspec.DecodeError, UnreadableMessage):
            broken += 1
            continue
        if inspection.inspection_id != place.inspection_id:
            broken += 1
        elif not (place.path / IMAGE).exists():
            without_image += 1
        else:
            parts[place.inspection_id] = _Kept(place, note, inspection, window)
    if not parts:
        raise InputError(
            where=folder,
            expected="a station's kept pictures (OUTBOX.pictures, or a copy of it)",
            found=f"{broken} damaged parts and no whole one" if broken else _what_is_at(folder),
            do="Copy that folder from the station as it is, without renaming what lies in it.",
        )
    remarks = []
    if broken:
        remarks.append(f"Parts left out, as their files are not whole: {broken}.")
    if without_image:
        remarks.append(f"Parts left out, as their frames could not be read: {without_image}.")
    return list(parts.values()), remarks


def _what_is_at(folder: Path) -> str:
    if not folder.exists():
        return "no such folder"
    return "no part with a picture" if folder.is_dir() else "a file, not a folder"


def _window_of(path: Path, note: KeptNote) -> tuple[tuple[Channel, ...], int] | None:
    if not (path / WINDOW).exists():
        return None
    values = raw_readings(path / WINDOW, note.channels)
    if values.ndim != 2 or len(values) != len(note.channels) or values.dtype.kind != "f":
        raise ValueError("a window of another shape than its channels")
    return note.channels, values.shape[1]


def _copied(part: _Kept, files: Path, usual: tuple[tuple[Channel, ...], int] | None) -> SampleRow:
    """Copy a part's files under its inspection's id."""
    inspection_id, folder = part.inspection.inspection_id, part.place.path
    image = (folder / IMAGE).read_bytes()
    (files / f"{inspection_id}.jpg").write_bytes(image)
    if (folder / HEAT_MAP).exists():
        (files / f"{inspection_id}.heat_map.png").write_bytes((folder / HEAT_MAP).read_bytes())
    sensor = digest = None
    if part.window is not None and part.window == usual:
        sensor, readings = f"{inspection_id}.npy", (folder / WINDOW).read_bytes()
        (files / sensor).write_bytes(readings)
        digest = digest_of_bytes(readings)
    inspection = part.inspection
    return SampleRow(
        sample_id=inspection_id,
        image=f"{inspection_id}.jpg",
        image_digest=digest_of_bytes(image),
        label=inspection.label.strip() or NOT_JUDGED,
        split=SPLIT,
        part_id=inspection.part_id.strip() or inspection_id,
        sensor=sensor,
        sensor_digest=digest,
        captured_at=_time_of(inspection),
    )


def _time_of(inspection: Inspection) -> str | None:
    try:
        nanoseconds_of(inspection.captured_at)
    except (InputError, OverflowError):
        return None
    return inspection.captured_at


def _write_table(path: Path, parts: list[_Kept], rows: list[SampleRow]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, _COLUMNS)
        table.writeheader()
        for part, row in zip(parts, rows, strict=True):
            table.writerow(_cells_of(part, row, path.parent))


def _cells_of(part: _Kept, row: SampleRow, files: Path) -> dict[str, Any]:
    inspection = part.inspection
    heat_map = f"{row.sample_id}.heat_map.png"
    return {
        "file_name": row.image,
        "sensor_file_name": row.sensor or "",
        "label": "" if inspection.decision == "invalid" else row.label,
        "part_id": row.part_id,
        "captured_at": row.captured_at or "",
        "verdict": inspection.decision,
        "anomaly_score": "" if inspection.anomaly_score is None else inspection.anomaly_score,
        "threshold": inspection.threshold,
        "why": " ".join(part.note.why),
        "drift": " ".join(inspection.drift),
        "reason": inspection.reason,
        "heat_map_file_name": heat_map if (files / heat_map).exists() else "",
        "inspection_id": inspection.inspection_id,
        "bundle_digest": inspection.bundle_digest,
    }
