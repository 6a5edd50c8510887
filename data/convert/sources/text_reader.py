"""Reader of raw CSV and JSON-lines files of any size, as frames of checked columns."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from msrec.data.convert.raw_tables import Progress, require_columns
from msrec.data.convert.row_filter import ROW, RowFilter, check_rows
from msrec.data.convert.sources.text_blocks import (
    TEXTS,
    CsvFormat,
    ParsedBlock,
    parse_csv,
    parse_json,
    read_blocks,
    read_header,
    split_lines,
)

INTEGER, NUMBER, TEXT = pl.Int64(), pl.Float64(), pl.String()
COMMAS = CsvFormat()
REQUIREMENTS = {INTEGER: "be a whole number", NUMBER: "be a finite number", TEXT: "be there"}


@dataclass(frozen=True)
class Column:
    """A column to read: its name in the file, its type, and whether values may be empty."""

    name: str
    kind: pl.DataType = INTEGER
    optional: bool = False


def optional_columns(names: Iterable[str], kind: pl.DataType = INTEGER) -> list[Column]:
    """Returns columns of one type whose values may be empty."""
    return [Column(name, kind, optional=True) for name in names]


@dataclass(frozen=True)
class TextReader:
    """Reads raw files, plain or .gz, as frames of some columns and the row number `row`.

    Files pass in blocks, so that they may be larger than memory. Bad rows go to `row_filter`, and
    `progress` is called with the bytes read. All methods that read raise FileNotFoundError if the
    file does not exist, and ValueError if it is cut off or, under the policy `fail`, if a row is
    bad; the message names file, column and row.
    """

    row_filter: RowFilter = field(default_factory=RowFilter)
    progress: Progress | None = None

    def csv(
        self, path: Path, columns: Sequence[Column], form: CsvFormat = COMMAS
    ) -> Iterator[pl.DataFrame]:
        """Yields the rows of a CSV file in order. Empty fields are null.

        Raises:
            ValueError: a column is missing.
        """
        names = [column.name for column in columns]
        header = form.header
        first_row = 0
        for block in read_blocks(path, form.quote, self.progress):
            if header is None:
                line, _, block = block.partition(b"\n")
                header = read_header(line, form)
            require_columns(header, names, str(path), "Take the file as it is published.")
            parsed = parse_csv(block, header, names, form, first_row)
            yield self._checked(parsed, columns, path, f"each row must have {len(header)} fields")
            first_row += parsed.num_rows
        if first_row == 0 and header is form.header:
            raise ValueError(f"{path} must hold rows; it is empty. Copy it again.")

    def json_lines(self, path: Path, columns: Sequence[Column]) -> Iterator[pl.DataFrame]:
        """Yields the rows of a file with a JSON object on each line, in order.

        A key that a line lacks is null. `row` counts the lines that are not blank.
        """
        schema = {c.name: TEXTS if c.kind == TEXTS else pl.String() for c in columns}
        first_row = 0
        for block in read_blocks(path, None, self.progress):
            parsed = parse_json(block, schema, first_row)
            yield self._checked(parsed, columns, path, "each line must be one JSON object")
            first_row += parsed.num_rows

    def lines(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """Yields some lines that are not blank, with the row number of the first."""
        first_row = 0
        for block in read_blocks(path, None, self.progress):
            lines = [line.decode(errors="replace") for line in split_lines(block)]
            yield first_row, lines
            first_row += len(lines)

    def table(
        self, frames: Iterable[pl.DataFrame], location: Path | str, key: str, renamed: str
    ) -> pl.DataFrame:
        """Returns the first row of each key of all frames, with the key under another name.

        Other rows of the same key are left out and counted.

        Raises:
            ValueError: a key is null.
        """
        frame = pl.concat(frames)
        is_key = pl.col(key).is_not_null()
        check_rows(frame, key, is_key, str(location), "have no null", "Give the row a key.")
        is_repeated = ~pl.col(key).is_first_distinct()
        reason = f"{location}: a row whose {key} is there already"
        return self.row_filter.exclude(frame, is_repeated, reason).rename({key: renamed})

    def _checked(
        self, parsed: ParsedBlock, columns: Sequence[Column], path: Path, rule: str
    ) -> pl.DataFrame:
        """Casts strings to the types of the columns; a row whose value does not cast is bad."""
        advice = "Correct it or take the row out."
        self.row_filter.reject(f"{path}: {rule}", parsed.problems, parsed.num_rows, advice)
        typed = {column.name: f"{column.name} as {column.kind}" for column in columns}
        casts = [_cast(parsed.frame[c.name], c.kind).alias(typed[c.name]) for c in columns]
        frame = parsed.frame.with_columns(casts)
        for column in columns:
            is_good = pl.col(typed[column.name]).is_not_null()
            if column.optional:
                is_good |= pl.col(column.name).is_null()
            must = REQUIREMENTS.get(column.kind, "be a list")
            frame = self.row_filter.keep(frame, column.name, is_good, str(path), must, advice)
        return frame.select(ROW, **typed)


def required_files(folder: Path, data_set: str, names: Sequence[str], site: str) -> list[Path]:
    """Returns the paths of the files that make up a published data set.

    Raises:
        FileNotFoundError: a file does not exist; says which files the data set has.
    """
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} must exist: {data_set} is {', '.join(names)}, from {site}."
            )
    return [folder / name for name in names]


def _cast(values: pl.Series, kind: pl.DataType) -> pl.Series:
    """Casts strings to numbers, with null for a string that is none."""
    if kind == NUMBER:
        number = values.cast(pl.Float64, strict=False)
        return number.set(~number.is_finite(), None)
    if kind == INTEGER:
        whole = values.cast(pl.Int64, strict=False)
        if whole.null_count() == values.null_count():
            return whole
        number = values.cast(pl.Float64, strict=False)  # such as 1.684742e+12 or 3.0
        as_whole = number.set(number != number.round(), None).cast(pl.Int64, strict=False)
        return whole.fill_null(as_whole)
    return values
