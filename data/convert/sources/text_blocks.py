"""Blocks of CSV and JSON-lines files: cut where a row ends, and parsed to strings."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from msrec.data.convert.raw_tables import Progress
from msrec.data.convert.row_filter import ROW

BLOCK_BYTES = 1 << 24
QUOTED_LINES = 100_000
"""Most lines of a quoted field; a quote that is open for longer is taken as never closed."""
ONE_BYTE_SEPARATOR = "\x1f"
"""Replaces a separator of several characters, which pyarrow cannot read."""


@dataclass(frozen=True)
class CsvFormat:
    """Format of a CSV file.

    A quote inside a quoted field is doubled; `quote` is None if fields are never quoted. `header`
    names the fields of a file without a header line.
    """

    separator: str = ","
    quote: str | None = '"'
    header: Sequence[str] | None = None
    encoding: str = "utf-8"


def read_blocks(path: Path, quote: str | None, progress: Progress | None) -> Iterator[bytes]:
    """Yields blocks of whole rows of a plain or .gz file.

    A line break inside quotes does not end a row.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is cut off, or a quote is never closed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} must exist; there is no such file.")
    total = path.stat().st_size
    with path.open("rb") as raw:
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[assignment]
        while block := _next_block(file, quote, path):
            yield block
            if progress:
                progress(f"reading {path.name}", raw.tell(), total)


def _next_block(file: IO[bytes], quote: str | None, path: Path) -> bytes:
    """Reads `BLOCK_BYTES` and the rest of the row in which they end; empty at the end of the file.

    A quote is open if the number of quotes is odd, since quotes inside a field are doubled.
    """
    mark = quote.encode() if quote else b""
    num_quotes = 0
    try:
        pieces = [file.read(BLOCK_BYTES), file.readline()]
        if mark:
            num_quotes = sum(piece.count(mark) for piece in pieces)
        while num_quotes % 2 and len(pieces) < QUOTED_LINES:
            pieces.append(file.readline())
            num_quotes += pieces[-1].count(mark)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file; {error}. Copy it again.") from None
    if num_quotes % 2:
        raise ValueError(
            f"{path}: every quoted field must end; one that begins before byte {file.tell():,} "
            "does not. Correct the quote, or copy the file again if it is cut off."
        )
    return b"".join(pieces)


def split_lines(block: bytes) -> list[bytes]:
    """Returns the lines that are not blank."""
    return [line for line in block.split(b"\n") if line.strip()]


def read_header(line: bytes, form: CsvFormat) -> list[str]:
    """Returns the names in a header line."""
    text = line.decode("utf-8-sig", errors="replace").rstrip("\r")
    if form.quote is None:
        return text.split(form.separator)
    return next(csv.reader([text], delimiter=form.separator, quotechar=form.quote), [])


def parse_csv(
    block: bytes, header: Sequence[str], columns: Sequence[str], form: CsvFormat, first_row: int
) -> tuple[pl.DataFrame, list[str]]:
    """Returns some columns of a CSV block as strings, and what is wrong with each bad row.

    Empty fields are null. A row with too few or too many fields is bad. Blank lines are not rows.
    The column `row` has the numbers of the good rows, which begin at `first_row`.
    """
    if form.encoding != "utf-8":
        block = block.decode(form.encoding).encode()
    separator = form.separator
    if len(separator) > 1:
        block = block.replace(separator.encode(), ONE_BYTE_SEPARATOR.encode())
        separator = ONE_BYTE_SEPARATOR
    block = block or b"\n"  # pyarrow refuses an empty file
    bad: list[Any] = []

    def skip(row: Any) -> str:
        bad.append(row)
        return "skip"

    table = pa.csv.read_csv(
        pa.BufferReader(block),
        # With several threads, pyarrow does not number bad rows.
        pa.csv.ReadOptions(column_names=header, use_threads=False, block_size=len(block)),
        pa.csv.ParseOptions(
            delimiter=separator,
            quote_char=form.quote or False,
            newlines_in_values=form.quote is not None,
            invalid_row_handler=skip,
        ),
        pa.csv.ConvertOptions(
            include_columns=columns,
            # As strings, pyarrow would refuse bytes that are not UTF-8.
            column_types=dict.fromkeys(columns, pa.binary()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    rows = np.arange(first_row, first_row + table.num_rows + len(bad))
    problems = [f"found {row.actual_columns} in row {rows[row.number - 1]}" for row in bad]
    good_rows = np.delete(rows, [row.number - 1 for row in bad])
    strings = {name: _decoded(table[name]) for name in columns}
    return pl.DataFrame({**strings, ROW: good_rows}), problems


def _decoded(values: pa.ChunkedArray) -> pl.Series:
    """Decodes UTF-8; other bytes become the replacement character."""
    try:
        strings = values.cast(pa.string())
    except pa.ArrowInvalid:
        texts = (v if v is None else v.decode(errors="replace") for v in values.to_pylist())
        strings = pa.array(texts, pa.string())
    return pl.Series(pl.from_arrow(strings))


def parse_json(
    block: bytes, keys: Sequence[str], lists: Sequence[str], first_row: int
) -> tuple[pl.DataFrame, list[str]]:
    """Returns some keys of a block of JSON lines, and what is wrong with each bad line.

    Values are strings, or lists of strings under the keys in `lists`. A key that a line lacks is
    null. Rows are numbered as by `parse_csv`.
    """
    schema = {key: pl.List(pl.String) if key in lists else pl.String() for key in keys}
    try:
        frame = pl.read_ndjson(block, schema=schema)
        rows = pl.int_range(first_row, first_row + pl.len(), dtype=pl.Int64)
        return frame.with_columns(rows.alias(ROW)), []
    except pl.exceptions.PolarsError:
        pass  # some line is bad: examine each one
    lines = dict(enumerate(split_lines(block), first_row))
    problems = {row: problem for row, line in lines.items() if (problem := _problem(line, lists))}
    good = [row for row in lines if row not in problems]
    frame = pl.read_ndjson(b"\n".join(lines[row] for row in good), schema=schema)
    frame = frame.with_columns(pl.Series(ROW, good, dtype=pl.Int64))
    return frame, [f"row {row} {problem}" for row, problem in problems.items()]


def _problem(line: bytes, lists: Sequence[str]) -> str:
    """Returns what is wrong with a JSON line; empty if nothing is."""
    try:
        value = json.loads(line)
    except ValueError as error:
        return f"is not JSON: {error}"
    if not isinstance(value, dict):
        return f"is a {type(value).__name__}"
    for key in lists:
        if not isinstance(value.get(key), list | None):
            return f"holds {value[key]!r} under {key!r}, which must be a list"
    return ""
