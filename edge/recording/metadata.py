"""The metadata of an image folder: one table, whatever of csv, jsonl or parquet holds it.

Every cell becomes text, an empty one where there is nothing, and every row keeps the words that
say where it stands ("metadata.csv, line 7"), so that an error can name it.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from edge.artefact import digest_of_file
from edge.errors import InputError, MachineError, nearest_hint

TABLE_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_LARGEST_EXACT = 2.0**53  # beyond it a float no longer tells neighbouring whole numbers apart


@dataclass(frozen=True)
class TableRow:
    """One row: `where` it stands, and its cells by column name ("" where nothing was written)."""

    where: str
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """The metadata of one folder."""

    path: Path
    digest: str  # SHA-256 of the file
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]

    def require(self, column: str, why: str) -> None:
        """Raise InputError, naming the nearest present column, when `column` is not there."""
        if column not in self.columns:
            raise InputError(
                where=self.path,
                expected=f"a column '{column}' ({why})",
                found="the columns " + (", ".join(self.columns) or "(none)"),
                do=nearest_hint(column, self.columns) + " Rename the column and import again.",
            )


def table_of(folder: Path) -> Table:
    """Read the one metadata file of `folder`. Raises InputError naming the line at fault."""
    present = [folder / name for name in TABLE_FILES if (folder / name).is_file()]
    if len(present) != 1:
        raise InputError(
            where=folder,
            expected="one of " + ", ".join(TABLE_FILES),
            found=", ".join(path.name for path in present) or _what_is_at(folder),
            do="Keep one of them: it names each sample's files and label."
            if present
            else "Check the path; for the MVTec AD layout use `edge import mvtec`.",
        )
    path = present[0]
    read = {".csv": _from_csv, ".jsonl": _from_jsonl, ".parquet": _from_parquet}[path.suffix]
    columns, rows = read(path)
    if not rows:
        raise InputError(
            where=path, expected="a row per sample", found="no row", do="Add the samples' rows."
        )
    return Table(path, digest_of_file(path), columns, tuple(rows))


def _what_is_at(folder: Path) -> str:
    if not folder.exists():
        return "no such folder"
    return "none of them" if folder.is_dir() else "a file, not a folder"


def _from_csv(path: Path) -> tuple[tuple[str, ...], list[TableRow]]:
    reader = csv.reader(io.StringIO(_text_of(path), newline=""), strict=True)
    rows: list[TableRow] = []
    columns: tuple[str, ...] = ()
    try:
        for cells in reader:
            where = f"{path.name}, line {reader.line_num}"
            if not cells:
                continue
            if not columns:
                columns = _checked_columns(path, [cell.strip() for cell in cells])
            elif len(cells) != len(columns):
                raise InputError(
                    where=where,
                    expected=f"{len(columns)} cells, one for each column",
                    found=f"{len(cells)}",
                    do="Mend the line; a cell that holds a comma stands in double quotes.",
                )
            else:
                trimmed = (cell.strip() for cell in cells)
                rows.append(TableRow(where, dict(zip(columns, trimmed, strict=True))))
    except csv.Error as error:
        raise _broken(f"{path.name}, line {reader.line_num}", str(error)) from None
    return columns, rows


def _checked_columns(path: Path, columns: list[str]) -> tuple[str, ...]:
    if len(columns) == 1 and ";" in columns[0]:
        raise InputError(
            where=path,
            expected="columns separated by commas",
            found="semicolons",
            do="Save it again as comma-separated (in a spreadsheet: 'CSV UTF-8, comma').",
        )
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise InputError(
            where=path,
            expected="each column once",
            found=f"'{twice[0]}' more than once",
            do="Rename or take out one of them.",
        )
    return tuple(columns)


def _from_jsonl(path: Path) -> tuple[tuple[str, ...], list[TableRow]]:
    rows = []
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            document = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
            raise _broken(where, str(error)) from None
        rows.append(TableRow(where, _cells_of(document)))
    return _columns_of(rows), rows


def _from_parquet(path: Path) -> tuple[tuple[str, ...], list[TableRow]]:
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - heavy, and only for parquet
    except ImportError:
        raise MachineError(
            where=path,
            expected="the package pyarrow, which reads .parquet",
            found="none",
            do="Install it with `pip install pyarrow`, or save the table as metadata.csv.",
        ) from None
    try:
        documents = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        # A plain ValueError is pyarrow's for a value that Python has no type for.
        raise _broken(path, str(error), "a metadata table in Parquet") from None
    rows = [
        TableRow(f"{path.name}, row {number}", _cells_of(document))
        for number, document in enumerate(documents, start=1)
    ]
    return _columns_of(rows), rows


def _cells_of(document: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text_from(value) for name, value in document.items()}


def _text_from(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, date):  # and datetime, which is a date
        return value.isoformat()
    if isinstance(value, float):
        # A table of floats has NaN where nothing was written, and 3.0 for the part 3.
        if math.isnan(value):
            return ""
        if value.is_integer() and abs(value) <= _LARGEST_EXACT:
            return str(int(value))
    return str(value).strip()


def _columns_of(rows: Iterable[TableRow]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in rows for name in row.cells))


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(path, str(error)) from None


def _broken(where: object, found: str, expected: str = "a metadata table in UTF-8") -> InputError:
    return InputError(
        where=where,
        expected=expected,
        found=found,
        do="Mend what it names and import again.",
    )
