"""Default features and texts of plain users and items tables that tables.yaml does not describe."""

from collections.abc import Container
from typing import Literal

import polars as pl

from msrec.data.convert.raw_tables import Feature, Side
from msrec.data.features.value_types import split_texts
from msrec.data.schema import TextFields

ROWS_A_VALUE = 1.5
"""A column is categorical if its values have at least so many rows on average."""
SEPARATORS = ("|", ";", ",")
"""Separators of values in a string, the first one that occurs is taken."""
STRINGS_A_VALUE = 2
"""A comma or semicolon separates values if there are so many different strings for each value."""


def guess_features(
    frame: pl.DataFrame, side: Side
) -> tuple[pl.DataFrame, list[Feature], list[str]]:
    """Returns the table with lists, its features, and a note on each column.

    Strings with several values become lists, see `_separator`. Strings and integers with few
    distinct values are sparse; floats without nulls are dense. These columns are left out: `x_name`
    and `raw_x` if there is `x`, a column that is the first value of a multi-valued one, `scenario*`
    (a column of the interactions), `rating*` and `label*`.
    """
    multi = {c: s for c in frame.columns if (s := _separator(frame[c])) is not None}
    frame = frame.with_columns(split_strings(frame[name], s) for name, s in multi.items())
    features, notes = [], []
    for column in frame.columns:
        if column == f"{side}_key":
            continue
        kind, reason = _guess_kind(frame, column, multi)
        if kind is None:
            notes.append(f"{side}s.{column}: no feature ({reason})")
        else:
            features.append(Feature(column, side, kind, separator=multi.get(column)))
            between = f", values separated by {multi[column]!r}" if column in multi else ""
            notes.append(f"{side}s.{column}: {kind} feature{between}")
    return frame, features, notes


def guess_text(users: pl.DataFrame, items: pl.DataFrame) -> tuple[TextFields, list[str]]:
    """Returns the texts for prompts, and notes: `title` and the other readable columns.

    A column of strings is readable if it is called `x_name`, or has letters and is not a raw id.
    Columns that are made of others (`text`, `raw_x`, the first value of a multi-valued column) are
    not readable, and neither is `x` if there is `x_name`.
    """
    text = TextFields(
        item_title="title" if "title" in items.columns else None,
        item_attributes=[c for c in items.columns if c != "title" and _is_readable(items, c)],
        user_attributes=[c for c in users.columns if _is_readable(users, c)],
    )
    return text, [
        f"item text: {', '.join([text.item_title or 'no title', *text.item_attributes])}",
        f"user text: {', '.join(text.user_attributes) or 'none'}",
    ]


def _guess_kind(
    frame: pl.DataFrame, column: str, multi: Container[str]
) -> tuple[Literal["sparse", "multi", "dense"] | None, str]:
    """Returns the kind of a feature, or None and the reason why the column is not one."""
    values = frame[column]
    if column in multi:
        return "multi", ""
    if column.startswith(("scenario", "rating", "label")):
        return None, "a scenario, rating or label"
    twin = _twin(frame, column)
    if twin:
        return None, f"the same as {twin}"
    if values.dtype.is_float():
        return (None, "has nulls") if values.null_count() else ("dense", "")
    if not (values.dtype.is_integer() or values.dtype in (pl.String, pl.Boolean)):
        return None, f"type {values.dtype}"
    distinct = values.drop_nulls().n_unique()
    if distinct * ROWS_A_VALUE > len(values) - values.null_count():
        return None, f"{distinct} distinct values in {len(values)} rows"
    return "sparse", ""


def _twin(frame: pl.DataFrame, column: str) -> str | None:
    """Returns the column that has the same content, if there is one."""
    base = column.removesuffix("_name").removeprefix("raw_")
    if base != column and base in frame.columns:
        return base
    for other in frame.columns:
        if frame[other].dtype == pl.List(pl.String) and frame[column].dtype == pl.String:
            if (frame[other].list.first() == frame[column]).all():
                return f"the first of {other}"
    return None


def _is_readable(frame: pl.DataFrame, column: str) -> bool:
    values = frame[column]
    is_name = column.endswith("_name")
    if column.startswith(("raw_", "scenario")) or column == "text":
        return False
    if f"{column}_name" in frame.columns:
        return False
    if values.dtype == pl.List(pl.String):
        return True
    if values.dtype != pl.String or column.endswith(("_key", "_id")):
        return False
    if is_name or _twin(frame, column):
        return is_name
    words = values.drop_nulls()
    is_raw_id = words.n_unique() == len(words) and not words.str.contains(" ").any()
    num_with_letters = int(words.str.contains("[A-Za-z]").sum())
    return not is_raw_id and 2 * num_with_letters >= len(words) > 0


def guess_separator(values: pl.Series) -> str:
    """Returns the separator of strings that are known to hold several values.

    Example:
        >>> guess_separator(pl.Series(["Action, Drama", "Drama", None]))
        ','
    """
    return separator_in(values) or SEPARATORS[0]


def separator_in(values: pl.Series) -> str:
    """Returns the first of `SEPARATORS` that occurs in strings; "" if there is none."""
    return next((s for s in SEPARATORS if values.str.contains(s, literal=True).any()), "")


def split_strings(values: pl.Series, separator: str) -> pl.Series:
    """Returns the values of each string as a list, see `split_text`."""
    lists = split_texts(values.to_arrow(), separator)
    return pl.Series(values.name, pl.from_arrow(lists), dtype=pl.List(pl.String))


def _separator(values: pl.Series) -> str | None:
    """Returns the separator of repeated values; None if it may be a sign in a sentence."""
    if values.dtype != pl.String:
        return None
    strings = values.drop_nulls()
    for separator in SEPARATORS:
        if strings.str.contains(separator, literal=True).any():
            pieces = split_strings(strings, separator).explode()
            distinct = pieces.n_unique()
            is_bar = separator == SEPARATORS[0]
            is_repeated = distinct * ROWS_A_VALUE <= len(pieces)
            if is_repeated and (is_bar or distinct * STRINGS_A_VALUE <= strings.n_unique()):
                return separator
    return None
