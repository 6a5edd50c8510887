"""Columns of plain tables in the types in which they are stored, and the declared features."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import polars as pl

from msrec.data.convert.raw_tables import Feature, Side
from msrec.data.convert.row_filter import ROW
from msrec.data.convert.sources.plain.guess import (
    SEPARATORS,
    guess_features,
    guess_separator,
    split_strings,
)
from msrec.data.convert.sources.plain.table_files import (
    TableFile,
    is_json,
    is_text,
    read_files,
    text_columns,
)
from msrec.data.convert.sources.plain.tables_mapping import (
    MAPPING_FILE,
    Kind,
    Kinds,
    Separated,
)
from msrec.data.convert.sources.text_reader import Columns, TextReader
from msrec.data.convert.table_checks import require_columns
from msrec.data.features.value_types import stored_series
from msrec.data.schema import ID_KEYS

NO_VALUE = f"A row must have a value there; else leave the column out of {MAPPING_FILE}."


ReadFiles = Callable[[Side, Sequence[TableFile], Columns, TextReader], pl.DataFrame]


def typed_table(frame: pl.DataFrame, columns: list[str], location: str) -> pl.DataFrame:
    """Returns a raw table in the types in which values are stored."""
    require_columns(frame.columns, columns, location)
    for name in columns:
        key = ID_KEYS.get(name)
        if key in frame.columns:
            raise ValueError(
                f"{location} must not have the column {key!r} beside {name!r}, which gets that "
                "name in a dataset folder. Rename or drop one."
            )
    return pl.DataFrame([stored_series(values) for values in frame])


def read_side(
    files: Sequence[TableFile],
    location: str,
    side: Side,
    declared: Kinds | None,
    types: Columns,
    reader: TextReader,
    read: ReadFiles = read_files,
) -> tuple[pl.DataFrame, list[Feature], list[str]]:
    """Returns a table with its features, these, and notes.

    Args:
        files: of the table; several only of a Delta or Iceberg table.
        location: names the table in messages.
        side: of the table.
        declared: its features; guessed if None.
        types: types of declared columns of text.
        reader: reads text.
        read: reads the files.

    Raises:
        ValueError: the file is text, and no features are declared; or see `read_table`.
    """
    path = files[0]
    if is_text(path) and declared is None:
        raise ValueError(
            f"{path} is text, so that {MAPPING_FILE} must say which columns are features; it has "
            f"no `{side}:`. Declare them, such as `{side}: {{city: sparse}}`, or `{side}: {{}}`."
        )
    columns = text_columns(path, types)
    frame = read(side, files, columns, reader)
    frame = typed_table(frame.drop(ROW) if is_text(path) else frame, [f"{side}_id"], location)
    if is_json(path):  # a key that no line has is null in all of them
        given = [name for name in frame.columns if frame[name].null_count() < frame.height]
        require_columns(given, list(declared or ()), location, NO_VALUE)
    frame = frame.rename({f"{side}_id": f"{side}_key"})
    if declared is None:
        return guess_features(frame, side)
    return declared_features(frame, side, declared, location)


def declared_features(
    frame: pl.DataFrame,
    side: Literal["user", "item", "interaction"],
    declared: Kinds,
    location: str,
    separators: Mapping[str, str] | None = None,
) -> tuple[pl.DataFrame, list[Feature], list[str]]:
    """Returns a table with its declared features, these, and a note on each guessed separator.

    `separators` are those that occur in all rows, if the table has only some of them.
    """
    require_columns(frame.columns, list(declared), location)
    features, notes = [], []
    for name, kind in declared.items():
        is_string = frame[name].dtype == pl.String
        if kind == "words":
            if not is_string:
                raise ValueError(
                    f"{location}: column {name!r} must hold strings, because {MAPPING_FILE} makes "
                    f"a feature of its words; found {frame[name].dtype}. Declare another kind."
                )
            words = pl.col(name).str.to_lowercase().str.extract_all(r"\w+")
            frame = frame.with_columns(words.list.unique().list.sort().alias(f"{name}_words"))
            features.append(Feature(f"{name}_words", side, "multi"))
        elif is_string and (kind == "multi" or isinstance(kind, Separated)):
            separator = _separator(frame[name], kind, separators)
            frame = frame.with_columns(split_strings(frame[name], separator))
            features.append(Feature(name, side, "multi", separator=separator))
            if kind == "multi":
                notes.append(f"{side}s.{name}: values are separated by {separator!r} (guessed)")
        elif isinstance(kind, Separated):
            raise ValueError(
                f"{location}: column {name!r} must hold strings, because {MAPPING_FILE} gives a "
                f"separator; found {frame[name].dtype}. Declare it as multi or sparse."
            )
        else:
            features.append(Feature(name, side, kind))
    return frame, features, notes


def _separator(
    values: pl.Series, kind: Kind | Separated, occurring: Mapping[str, str] | None
) -> str:
    """Returns the separator of the values in strings: declared, occurring, or guessed."""
    if isinstance(kind, Separated):
        return kind.multi
    if occurring is None:
        return guess_separator(values)
    return occurring[values.name] or SEPARATORS[0]
