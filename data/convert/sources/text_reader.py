"""Reader of raw CSV and JSON-lines files of any size, as frames of checked columns."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import polars as pl
import pyarrow as pa

from msrec.data.convert.raw_tables import Progress
from msrec.data.convert.row_filter import ROW, STRICT, RowFilter
from msrec.data.convert.sources.json_lines import parse_json
from msrec.data.convert.sources.text_blocks import (
    CsvFormat,
    parse_csv,
    read_blocks,
    read_header,
    split_lines,
)
from msrec.data.convert.table_checks import require_columns
from msrec.data.io.paths import AnyPath, first_line


class Scalar(str):
    """Type of a text that JSON may hold as a string, number or boolean, not as an object or list.

    A column of `str` takes objects and lists as JSON text.
    """


Columns = Mapping[str, Any]
"""Columns to read: name -> int, float, bool, str, Scalar, or a list of one of the last two; `int |
None` if values may be empty. Booleans become the numbers 0 and 1."""
COMMAS = CsvFormat()
AS_PUBLISHED = "Correct the header, or take the file as it is published."
REQUIREMENTS = {
    int: "be a whole number",
    float: "be a finite number",
    bool: "be 0, 1, true or false",
    str: "be there",
}


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
        self, path: AnyPath, columns: Columns, form: CsvFormat = COMMAS
    ) -> Iterator[pl.DataFrame]:
        """Yields the rows of a CSV file in order. Empty fields are null.

        Raises:
            ValueError: a column is missing or repeated, or the file is not CSV.
        """
        header = form.header
        first_row = 0
        for block in read_blocks(path, form.quote, self.progress):
            try:
                if header is None:
                    line, _, block = block.partition(b"\n")
                    header = read_header(line, form)
                require_columns(header, list(columns), str(path), AS_PUBLISHED, once=True)
                frame, problems = parse_csv(block, header, list(columns), form, first_row)
            except (pa.ArrowInvalid, csv.Error) as error:
                raise ValueError(f"{path} must be CSV; {first_line(error)}. Correct it.") from None
            first_row += frame.height + len(problems)
            rule = f"{path}: each row must have {len(header)} fields"
            yield self._checked(frame, problems, rule, columns, path)
        if first_row == 0 and header is form.header:
            raise ValueError(f"{path} must hold rows; it is empty. Copy it again.")

    def header(self, path: AnyPath, form: CsvFormat = COMMAS) -> list[str]:
        """Returns the names in the first line of a CSV file; none if the file is empty.

        Raises:
            ValueError: the line is not CSV.
        """
        block = next(read_blocks(path, form.quote, None), b"")
        try:
            return read_header(block.partition(b"\n")[0], form)
        except csv.Error as error:
            raise ValueError(f"{path} must be CSV; {first_line(error)}. Correct it.") from None

    def json_lines(self, path: AnyPath, columns: Columns) -> Iterator[pl.DataFrame]:
        """Yields the rows of a file with a JSON object on each line, in order.

        A key that a line lacks is null. `row` counts the lines that are not blank.
        """
        bases = {name: _base(kind) for name, kind in columns.items()}
        lists = [name for name, base in bases.items() if get_origin(base) is list]
        flat = [name for name, base in bases.items() if Scalar in (base, *get_args(base))]
        first_row = 0
        for block in read_blocks(path, None, self.progress):
            frame, problems = parse_json(block, list(columns), lists, first_row, flat)
            first_row += frame.height + len(problems)
            rule = f"{path}: each line must be one JSON object"
            yield self._checked(frame, problems, rule, columns, path)
        if first_row == 0:
            raise ValueError(f"{path} must hold rows; it is empty. Copy it again.")

    def lines(self, path: AnyPath) -> Iterator[tuple[int, list[str]]]:
        """Yields some lines that are not blank, with the row number of the first."""
        first_row = 0
        for block in read_blocks(path, None, self.progress):
            lines = [line.decode(errors="replace") for line in split_lines(block)]
            yield first_row, lines
            first_row += len(lines)

    def table(
        self, frames: Iterable[pl.DataFrame], location: AnyPath | str, key: str, renamed: str
    ) -> pl.DataFrame:
        """Returns the first row of each key of all frames, with the key under another name.

        Other rows of the same key are left out and counted.

        Raises:
            ValueError: a key is null.
        """
        frame = pl.concat(frames)
        is_key, advice = pl.col(key).is_not_null(), "Give the row a key."
        STRICT.keep(frame, key, is_key, location, "have no null", advice)
        is_repeated = ~pl.col(key).is_first_distinct()
        reason = f"{location}: a row whose {key} is there already"
        return self.row_filter.exclude(frame, is_repeated, reason).rename({key: renamed})

    def _checked(
        self,
        frame: pl.DataFrame,
        problems: Sequence[str],
        rule: str,
        columns: Columns,
        path: AnyPath,
    ) -> pl.DataFrame:
        """Casts strings to the types of the columns; a row whose value does not cast is bad."""
        advice = "Correct it or take the row out."
        self.row_filter.reject(rule, problems, frame.height + len(problems), advice)
        typed = {name: f"{name} as {kind}" for name, kind in columns.items()}
        casts = [_cast(frame[name], columns[name]).alias(typed[name]) for name in columns]
        frame = frame.with_columns(casts)
        for name, kind in columns.items():
            is_good = pl.col(typed[name]).is_not_null()
            if kind != _base(kind):
                is_good |= pl.col(name).is_null()
            must = REQUIREMENTS.get(_base(kind), "be a list")
            frame = self.row_filter.keep(frame, name, is_good, path, must, advice)
        frame = frame.select(ROW, **typed)
        self.row_filter.count_replaced(frame, path)
        return frame


def required_files(folder: Path, data_set: str, names: Sequence[str], site: str) -> list[Path]:
    """Returns the paths of the files that make up a published data set.

    Raises:
        FileNotFoundError: a file does not exist; says which files the data set has.
    """
    paths = []
    for name in names:
        path = raw_file(folder, name)
        if path is None:
            raise FileNotFoundError(
                f"{folder / name} must exist: {data_set} is {', '.join(names)}, each plain or .gz, "
                f"from {site}."
            )
        paths.append(path)
    return paths


def raw_file(folder: Path, name: str) -> Path | None:
    """Returns the file of that name, else the one with `.gz` after it, else None."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _base(kind: Any) -> Any:
    """Returns the type of values that are not empty: int for `int | None`."""
    return get_args(kind)[0] if NoneType in get_args(kind) else kind


def _cast(values: pl.Series, kind: Any) -> pl.Series:
    """Casts strings to numbers, with null for a string that is none."""
    if _base(kind) is bool:
        words = values.str.to_lowercase().replace({"true": "1", "false": "0"})
        number = words.cast(pl.Float64, strict=False)
        return number.set(~number.is_in([0.0, 1.0]), None)
    if _base(kind) is float:
        number = values.cast(pl.Float64, strict=False)
        return number.set(~number.is_finite(), None)
    if _base(kind) is int:
        whole = values.cast(pl.Int64, strict=False)
        if whole.null_count() == values.null_count():
            return whole
        number = values.cast(pl.Float64, strict=False)  # such as 1.684742e+12 or 3.0
        as_whole = number.set(number != number.round(), None).cast(pl.Int64, strict=False)
        return whole.fill_null(as_whole)
    return values
