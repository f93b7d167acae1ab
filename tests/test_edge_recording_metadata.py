"""Metadata tables with the mistakes that people and spreadsheets make."""

import math
import sys

import pyarrow
import pytest
from pyarrow import parquet

from edge.errors import InputError, MachineError
from edge.recording.metadata import table_of


def refusal(folder):
    with pytest.raises(InputError) as caught:
        table_of(folder)
    return str(caught.value)


def test_a_folder_without_a_table_says_which_names_are_known(tmp_path):
    assert "metadata.csv, metadata.jsonl, metadata.parquet" in refusal(tmp_path)


def test_a_path_that_is_not_there_is_said_so(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")


def test_two_tables_in_one_folder_are_refused(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,ok\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "label": "ok"}\n')
    assert "metadata.csv, metadata.jsonl" in refusal(tmp_path).split("found")[1]


def test_a_table_without_rows_is_refused(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,label\n")
    assert "no row" in refusal(tmp_path)


def test_a_line_with_a_cell_too_many_is_named(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,ok\n\nb.png,ok,extra\n")
    message = refusal(tmp_path)
    assert "metadata.csv, line 4" in message
    assert "2 cells" in message


def test_semicolons_are_recognised(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name;label\na.png;ok\n")
    assert "semicolons" in refusal(tmp_path)


def test_a_column_twice_is_refused(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,label,label\na.png,ok,ok\n")
    assert "'label' more than once" in refusal(tmp_path)


def test_a_spreadsheets_byte_order_mark_and_spaces_do_no_harm(tmp_path):
    (tmp_path / "metadata.csv").write_bytes("\ufefffile_name, label\r\na.png, ok\r\n".encode())
    table = table_of(tmp_path)
    assert table.columns == ("file_name", "label")
    assert table.rows[0].cells == {"file_name": "a.png", "label": "ok"}


def test_text_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "metadata.csv").write_bytes("file_name,label\nprüfung.png,ok\n".encode("latin-1"))
    assert "UTF-8" in refusal(tmp_path)


def test_a_broken_json_line_is_named(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "label": "ok"}\n[1, 2]\n')
    assert "metadata.jsonl, line 2" in refusal(tmp_path)


def test_numbers_and_nulls_of_jsonl_become_text(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "label": 3, "split": null}\n')
    assert table_of(tmp_path).rows[0].cells == {"file_name": "a.png", "label": "3", "split": ""}


def test_parquet_without_pyarrow_is_the_machines_lack(tmp_path, monkeypatch):
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MachineError, match="pip install pyarrow"):
        table_of(tmp_path)


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "metadata.parquet").write_bytes(b"file_name,label\n")
    message = refusal(tmp_path)
    assert "metadata.parquet: expected a metadata table in Parquet" in message
    assert "UTF-8" not in message


def cells_from_parquet(folder, columns):
    parquet.write_table(pyarrow.table(columns), folder / "metadata.parquet")
    return [dict(row.cells) for row in table_of(folder).rows]


def test_not_a_number_in_parquet_is_an_empty_cell(tmp_path):
    empty = pyarrow.array([math.nan, math.nan], pyarrow.float64())
    cells = cells_from_parquet(tmp_path, {"file_name": ["a.png", "nan"], "split": empty})
    assert cells == [{"file_name": "a.png", "split": ""}, {"file_name": "nan", "split": ""}]


def test_whole_numbers_in_a_float_column_are_written_without_a_point(tmp_path):
    cells = cells_from_parquet(tmp_path, {"part_id": [3.0, math.nan, 2.5, -0.0, 1e300, math.inf]})
    assert [row["part_id"] for row in cells] == ["3", "", "2.5", "0", "1e+300", "inf"]


def test_a_time_in_parquet_that_python_cannot_hold_is_refused(tmp_path):
    times = pyarrow.array([10**18 + 1], pyarrow.timestamp("ns"))
    parquet.write_table(pyarrow.table({"captured_at": times}), tmp_path / "metadata.parquet")
    assert "in Parquet" in refusal(tmp_path)
