"""CSV and JSON-lines files of any size as frames of checked columns, block by block."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import polars as pl

from msrec.data.convert.row_filter import ROW, RowFilter, refuse

Report = Callable[[str, int, int], None]
"""(stage, done, total), called as the work goes on; bytes of a file here."""

BLOCK_BYTES = 1 << 25
QUOTE_BLOCKS = 8
"""A quoted field may run over so many blocks; then the quote is taken as never closed."""
INTEGER, NUMBER, TEXT, TEXTS = pl.Int64(), pl.Float64(), pl.String(), pl.List(pl.String)


@dataclass(frozen=True)
class Column:
    """A column to read: its name in the file, its type, and whether it may be empty."""

    name: str
    kind: pl.DataType = INTEGER
    optional: bool = False

    @property
    def must(self) -> str:
        """What a value must be, for the sentence about one that is not."""
        words = {INTEGER: "a whole number", NUMBER: "a finite number", TEXT: "there"}
        return f"be {words.get(self.kind, 'a list')}"


def read_csv(
    path: Path,
    columns: Sequence[Column],
    faults: RowFilter,
    report: Report | None = None,
    separator: str = ",",
    quote: str | None = '"',
    header: Sequence[str] | None = None,
) -> Iterator[pl.DataFrame]:
    """Frames with `columns` (others are not kept) and `row`, in the order of the file.

    Args:
        path: plain or .gz, UTF-8.
        columns: what to read.
        faults: decides what happens to a bad row.
        report: told the bytes read.
        separator: one character.
        quote: one character, doubled inside a field; None where fields are never quoted.
        header: names of the fields in a file without a header line.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: a column is missing, the file is cut off, or a row is bad; names file and row.
    """
    blocks = _blocks(path, quote.encode() if quote else None, report)
    names = list(header) if header else None
    row = 0
    for block in blocks:
        if names is None:
            names, block = _header(path, block, separator, quote)
        if row == 0:
            _check_names(path, columns, names)
        if block.strip():
            frame, rows = _csv_frame(path, block, names, columns, separator, quote, row, faults)
            row += rows
            yield _typed(frame, columns, str(path), faults)
    if names is None:
        raise ValueError(f"{path} must begin with a line of column names; it is empty.")


def read_json_lines(
    path: Path, columns: Sequence[Column], faults: RowFilter, report: Report | None = None
) -> Iterator[pl.DataFrame]:
    """Frames with `columns` (other keys are not kept) and `row`, in the order of the file.

    A key that a line lacks is null; rows count the lines that are not blank.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: the file is cut off, or a line is no JSON object or has a bad value; names file
            and row.
    """
    row = 0
    for block in _blocks(path, None, report):
        if block.strip():
            frame, rows = _json_frame(path, block, columns, row, faults)
            row += rows
            yield _typed(frame, columns, str(path), faults)


def read_lines(path: Path, report: Report | None = None) -> Iterator[tuple[int, list[str]]]:
    """Row number of the first, and the lines that are not blank, a block at a time.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: the file is cut off.
    """
    row = 0
    for block in _blocks(path, None, report):
        text = block.decode("utf-8", errors="replace")
        lines = [line for line in text.split("\n") if line.strip()]
        yield row, lines
        row += len(lines)


def first_of_each(frame: pl.DataFrame, key: str, path: Path, faults: RowFilter) -> pl.DataFrame:
    """The rows that are the first of their key; the others are left out and counted.

    Raises:
        ValueError: a key is null.
    """
    refuse(frame[key].is_null(), frame[key], str(path), "have no null", "Give the row a key.")
    reason = f"{path}: a row whose {key} is there already"
    return faults.exclude(frame, ~frame[key].is_first_distinct(), reason)


def _blocks(path: Path, quote: bytes | None, report: Report | None) -> Iterator[bytes]:
    """Pieces of whole rows; a row ends at a line break outside quotes."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} must exist; there is no such file.")
    total = path.stat().st_size
    with path.open("rb") as raw:
        text: IO[bytes] = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[assignment]
        block = b""
        while piece := _piece(text, path):
            block += piece
            cut = _end_of_rows(block, quote)
            if cut:
                yield block[:cut]
                block = block[cut:]
            elif quote and len(block) > QUOTE_BLOCKS * BLOCK_BYTES:
                raise ValueError(
                    f"{path}: a quoted field must end; one that begins in the last "
                    f"{len(block):,} bytes before byte {raw.tell():,} does not. Mend the quote."
                )
            if report:
                report(f"reading {path.name}", raw.tell(), total)
        if block:
            if quote and block.count(quote) % 2:
                raise ValueError(
                    f"{path}: every quoted field must end; one in the last {len(block):,} bytes "
                    "does not. The file may be cut off: copy it again."
                )
            yield block


def _piece(text: IO[bytes], path: Path) -> bytes:
    try:
        return text.read(BLOCK_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file; {error}. Copy it again.") from None


def _end_of_rows(block: bytes, quote: bytes | None) -> int:
    end = len(block)
    quotes = block.count(quote) if quote else 0
    while (at := block.rfind(b"\n", 0, end)) >= 0:
        if quote:
            quotes -= block.count(quote, at, end)
        if quotes % 2 == 0:
            return at + 1
        end = at
    return 0


def _header(path: Path, block: bytes, separator: str, quote: str | None) -> tuple[list[str], bytes]:
    line, _, rest = block.partition(b"\n")
    text = line.decode("utf-8-sig", errors="replace").rstrip("\r")
    return next(csv.reader([text], **_dialect(separator, quote)), []), rest


def _check_names(path: Path, columns: Sequence[Column], names: Sequence[str]) -> None:
    missing = [column.name for column in columns if column.name not in names]
    if missing:
        raise ValueError(
            f"{path} must have the column {', '.join(map(repr, missing))}; found "
            f"{', '.join(names)}. Take the file as it is published."
        )


def _csv_frame(
    path: Path,
    block: bytes,
    names: list[str],
    columns: Sequence[Column],
    separator: str,
    quote: str | None,
    first_row: int,
    faults: RowFilter,
) -> tuple[pl.DataFrame, int]:
    """The wanted columns as strings, and how many rows the block has."""
    wanted = [column.name for column in columns]
    last = names[-1]
    try:
        frame = pl.read_csv(
            block,
            has_header=False,
            schema=dict.fromkeys(names, pl.String),
            columns=sorted({names.index(name) for name in (*wanted, last)}),
            separator=separator,
            quote_char=quote,
        )
        # Polars fills a row that is too short: seen by its empty last field.
        if not frame[last].null_count():
            filled = frame.select(pl.col(wanted).replace("", None))
            return _numbered(filled, first_row), frame.height
    except pl.exceptions.PolarsError:
        pass  # some row is bad: the slow way below finds it
    text = io.StringIO(block.decode("utf-8", errors="replace"), newline="")
    good, numbers, bad, rows = [], [], [], 0
    csv.field_size_limit(len(block))
    for fields in csv.reader(text, **_dialect(separator, quote)):
        if len(fields) == len(names):
            good.append(fields)
            numbers.append(first_row + rows)
        elif fields:
            bad.append((first_row + rows, len(fields)))
        rows += bool(fields)
    if bad:
        row, found = bad[0]
        must = f"have {len(names)} fields"
        such = f"{len(bad)} such row{'s' if len(bad) > 1 else ''} of {rows}"
        sentence = (
            f"{path}: each row must {must}; found {found} in row {row} ({such}). Mend the row or "
            "take the file as it is published."
        )
        faults.unreadable(len(bad), f"{path}: each row must {must}", sentence)
    strings = pl.DataFrame(good, schema=dict.fromkeys(names, pl.String), orient="row")
    filled = strings.select(pl.col(wanted).replace("", None))
    return filled.with_columns(pl.Series(ROW, numbers, dtype=pl.Int64)), rows


def _dialect(separator: str, quote: str | None) -> dict[str, Any]:
    quoting = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    return {"delimiter": separator, "quotechar": quote, "quoting": quoting}


def _json_frame(
    path: Path, block: bytes, columns: Sequence[Column], first_row: int, faults: RowFilter
) -> tuple[pl.DataFrame, int]:
    kinds = {c.name: TEXTS if c.kind == TEXTS else pl.String() for c in columns}
    try:
        frame = pl.read_ndjson(block, schema=kinds)
        return _numbered(frame, first_row), frame.height
    except pl.exceptions.PolarsError:
        pass  # some line is bad: the slow way below finds it
    good, numbers, bad = [], [], []
    lines = [line for line in block.splitlines() if line.strip()]
    for row, line in enumerate(lines, first_row):
        reason = _bad_line(line, kinds)
        if reason:
            bad.append((row, reason))
        else:
            good.append(line)
            numbers.append(row)
    if bad:
        row, reason = bad[0]
        such = f"{len(bad)} such row{'s' if len(bad) > 1 else ''} of {len(lines)}"
        must = f"{path}: each line must be one JSON object"
        sentence = f"{must}; row {row} {reason} ({such}). Mend the line or take it out."
        faults.unreadable(len(bad), must, sentence)
    frame = pl.read_ndjson(b"\n".join(good), schema=kinds) if good else pl.DataFrame(schema=kinds)
    return frame.with_columns(pl.Series(ROW, numbers, dtype=pl.Int64)), len(lines)


def _bad_line(line: bytes, kinds: Mapping[str, pl.DataType]) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        return f"is not JSON: {error}"
    if not isinstance(value, dict):
        return f"is a {type(value).__name__}"
    for name, kind in kinds.items():
        held = value.get(name)
        if kind == TEXTS and held is not None and not isinstance(held, list):
            return f"holds {held!r} under {name!r}, which must be a list"
    return ""


def _numbered(frame: pl.DataFrame, first_row: int) -> pl.DataFrame:
    return frame.with_columns(pl.int_range(first_row, first_row + pl.len()).alias(ROW))


def _typed(
    frame: pl.DataFrame, columns: Sequence[Column], where: str, faults: RowFilter
) -> pl.DataFrame:
    """Strings to the columns' types; a row with a value of another type is bad."""
    for column in columns:
        raw = frame[column.name]
        values = _cast(raw, column.kind)
        bad = values.is_null() & (raw.is_not_null() if column.optional else True)
        frame = frame.with_columns(values)
        frame = faults.keep(frame, bad, raw, where, column.must, "Correct it or take the row out.")
    return frame


def _cast(raw: pl.Series, kind: pl.DataType) -> pl.Series:
    if kind == INTEGER:
        whole = raw.cast(pl.Int64, strict=False)
        if whole.null_count() == raw.null_count():
            return whole
        number = raw.cast(pl.Float64, strict=False)  # 1.684742e+12, 3.0
        as_whole = pl.select(pl.when(number == number.round()).then(number)).to_series()
        return whole.fill_null(as_whole.cast(pl.Int64, strict=False)).alias(raw.name)
    if kind == NUMBER:
        number = raw.cast(pl.Float64, strict=False)
        return pl.select(pl.when(number.is_finite()).then(number)).to_series().alias(raw.name)
    return raw
