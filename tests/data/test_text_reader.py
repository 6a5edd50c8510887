"""Raw text files in blocks: rows, row numbers and errors do not depend on where a block ends."""

import csv
import gzip

import polars as pl
import pytest

from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources.text_blocks import CsvFormat
from msrec.data.convert.sources.text_reader import TextReader

BLOCK_BYTES = "msrec.data.convert.sources.text_blocks.BLOCK_BYTES"


def read(path, columns, policy="fail", **form):
    """The frame of a CSV file, and the filter that saw its rows."""
    reader = TextReader(RowFilter(policy))
    return pl.concat(reader.csv(path, columns, CsvFormat(**form))), reader.row_filter


@pytest.mark.parametrize("block_bytes", [1, 10, 1000])
@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_quoted_fields_may_hold_separators_quotes_and_line_breaks(
    tmp_path, monkeypatch, suffix, block_bytes
):
    monkeypatch.setattr(BLOCK_BYTES, block_bytes)
    texts = ["plain", 'so "good",\nand\n\nmore', "", "日本, 語", '"', "a\r\nb"] * 3
    path = tmp_path / f"a.{suffix}"
    with (gzip.open if suffix.endswith("gz") else open)(path, "wt", newline="") as file:
        csv.writer(file).writerows([["n", "text"], *enumerate(texts)])
    frame, _ = read(path, {"n": int, "text": str | None})
    assert frame["n"].to_list() == frame["row"].to_list() == list(range(len(texts)))
    assert frame["text"].to_list() == [text or None for text in texts]


@pytest.mark.parametrize("block_bytes", [1, 7, 1000])
def test_rows_are_numbered_with_the_bad_ones_and_without_blank_lines(
    tmp_path, monkeypatch, block_bytes
):
    monkeypatch.setattr(BLOCK_BYTES, block_bytes)
    path = tmp_path / "a.csv"
    path.write_text("n,m\n0,1\n\n1\n2,x\n\n3,3.0\n4,1.5\n5,,\n6,1e3")
    frame, row_filter = read(path, {"n": int, "m": int}, policy="skip")
    assert frame.rows() == [(0, 0, 1), (3, 3, 3), (6, 6, 1000)]
    assert sorted(row_filter.excluded.values()) == [2, 2]
    messages = "".join(row_filter.examples.values())
    assert "each row must have 2 fields; found 1 in row 1 " in messages
    assert "column 'm' must be a whole number; found 'x' in row 2 " in messages
    with pytest.raises(ValueError, match="a.csv: .* row"):
        read(path, {"n": int, "m": int})


def test_a_column_that_is_not_asked_for_may_hold_anything(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfn,text\r\n0,\xff\r\n1,b\r\n")
    assert read(path, {"n": int})[0].rows() == [(0, 0), (1, 1)]
    assert read(path, {"text": str})[0]["text"].to_list() == ["\ufffd", "b"]


def test_a_separator_may_have_several_characters(tmp_path):
    path = tmp_path / "a.dat"
    path.write_bytes('1::Léon "x": y::3\n'.encode("latin-1"))
    form = {"separator": "::", "quote": None, "header": "abc", "encoding": "latin-1"}
    assert read(path, {"b": str, "a": int}, **form)[0].rows() == [(0, 'Léon "x": y', 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold rows; it is empty"),
        (b"m\n1\n", "must have the column 'n'; found m"),
        (b'n\n"1\n2\n', "every quoted field must end"),
    ],
)
def test_a_file_without_rows_or_columns_is_refused(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.csv.*{message}"):
        read(tmp_path / "a.csv", {"n": int})


def test_a_header_alone_is_a_table_without_rows(tmp_path):
    (tmp_path / "a.csv").write_text("n,text\n")
    frame, _ = read(tmp_path / "a.csv", {"n": int, "text": str | None})
    assert frame.schema == {"row": pl.Int64, "n": pl.Int64, "text": pl.String}
    assert frame.is_empty()


def test_a_gzip_file_that_is_cut_off_is_refused(tmp_path):
    packed = gzip.compress(b"n\n" + b"1\n" * 1000)
    (tmp_path / "a.csv.gz").write_bytes(packed[:-12])
    with pytest.raises(ValueError, match="a.csv.gz must be a whole gzip file"):
        read(tmp_path / "a.csv.gz", {"n": int})
