"""Blocks of text files, cut where a row ends, and blocks of CSV files parsed to strings."""

import codecs
import csv
import gzip
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
from msrec.data.io.paths import AnyPath, is_file, reachable

BLOCK_BYTES = 1 << 24
QUOTED_LINES = 100_000
"""Most lines of a quoted field; a quote that is open for longer is taken as never closed."""
BEGINNING_BYTES = 4096
GZIP_MAGIC = b"\x1f\x8b"
UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
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


def read_blocks(path: AnyPath, quote: str | None, progress: Progress | None) -> Iterator[bytes]:
    """Yields blocks of whole rows of a plain or gzipped file, without a byte order mark.

    A line break inside quotes does not end a row.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is cut off, a quote is never closed, or the file is binary or UTF-16,
            or has lines that end with a carriage return only.
    """
    if not is_file(path):
        raise FileNotFoundError(f"{path} must exist; there is no such file.")
    with reachable(path), _opened(path) as raw:
        total = path.stat().st_size
        is_packed = path.suffix == ".gz" or raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        raw.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if is_packed else raw  # type: ignore[assignment]
        while block := _next_block(file, quote, path):
            yield block
            if progress:
                progress(f"reading {path.name}", raw.tell(), total)


def _opened(path: AnyPath) -> IO[bytes]:
    """Opens a file; of a remote one, `BLOCK_BYTES` are requested at a time."""
    if isinstance(path, Path):
        return path.open("rb")
    options = {"block_size": BLOCK_BYTES, "cache_type": "readahead"}
    file: IO[bytes] = path.fs.open(path.path, "rb", **options)
    return file


def _checked_beginning(block: bytes, path: AnyPath) -> bytes:
    """Returns the first block without a byte order mark."""
    if block.startswith(UTF_16_MARKS):
        raise ValueError(f"{path} must be UTF-8 text; it begins like UTF-16. Save it as UTF-8.")
    if b"\0" in block[:BEGINNING_BYTES]:
        raise ValueError(
            f"{path} must be UTF-8 text; it has a zero byte in the beginning, as binary files and "
            "UTF-16 do. Save it as UTF-8, or give it the name of its format, such as .parquet."
        )
    if b"\r" in block and b"\n" not in block:
        raise ValueError(
            f"{path} must end its lines with a line feed; they end with a carriage return. Convert "
            "it, such as by: tr '\\r' '\\n'."
        )
    return block.removeprefix(codecs.BOM_UTF8)


def _next_block(file: IO[bytes], quote: str | None, path: AnyPath) -> bytes:
    """Reads `BLOCK_BYTES` and the rest of the row in which they end; empty at the end of the file.

    A quote is open if the number of quotes is odd, since quotes inside a field are doubled.
    """
    mark = quote.encode() if quote else b""
    num_quotes = 0
    try:
        is_first = not file.tell()
        pieces = [file.read(BLOCK_BYTES)]
        if is_first:
            pieces[0] = _checked_beginning(pieces[0], path)
        pieces.append(file.readline())
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
    """Returns the names in a header line.

    Raises:
        csv.Error: it is not CSV.
    """
    text = line.decode(errors="replace").rstrip("\r")
    if form.quote is None:
        return text.split(form.separator)
    return next(csv.reader([text], delimiter=form.separator, quotechar=form.quote), [])


def parse_csv(
    block: bytes, header: Sequence[str], columns: Sequence[str], form: CsvFormat, first_row: int
) -> tuple[pl.DataFrame, list[str]]:
    """Returns some columns of a CSV block as strings, and what is wrong with each bad row.

    The header has each of these columns once.

    Empty fields are null. A row with too few or too many fields is bad. Blank lines are not rows.
    The column `row` has the numbers of the good rows, which begin at `first_row`.

    Raises:
        pyarrow.ArrowInvalid: the block is not CSV.
    """
    # Pyarrow loses a bad row that has bytes that are not UTF-8.
    block = block.decode(form.encoding, errors="replace").encode()
    separator = form.separator
    if len(separator) > 1:
        block = block.replace(separator.encode(), ONE_BYTE_SEPARATOR.encode())
        separator = ONE_BYTE_SEPARATOR
    block = block or b"\n"  # pyarrow refuses an empty file
    bad: list[Any] = []

    def skip(row: Any) -> str:
        bad.append(row)
        return "skip"

    numbers = {name: str(header.index(name)) for name in columns}  # other names may be repeated
    table = pa.csv.read_csv(
        pa.BufferReader(block),
        # With several threads, pyarrow does not number bad rows.
        pa.csv.ReadOptions(
            column_names=list(map(str, range(len(header)))),
            use_threads=False,
            block_size=len(block),
        ),
        pa.csv.ParseOptions(
            delimiter=separator,
            quote_char=form.quote or False,
            newlines_in_values=form.quote is not None,
            invalid_row_handler=skip,
        ),
        pa.csv.ConvertOptions(
            include_columns=list(numbers.values()),
            column_types=dict.fromkeys(numbers.values(), pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    rows = np.arange(first_row, first_row + table.num_rows + len(bad))
    problems = [f"found {row.actual_columns} in row {rows[row.number - 1]}" for row in bad]
    good_rows = np.delete(rows, [row.number - 1 for row in bad])
    strings = {name: pl.Series(pl.from_arrow(table[at])) for name, at in numbers.items()}
    return pl.DataFrame({**strings, ROW: good_rows}), problems
