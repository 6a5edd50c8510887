"""Which columns of plain users / items tables are features and texts when nobody has said so."""

from typing import Literal

import polars as pl

from msrec.data.convert.raw_tables import Feature
from msrec.data.schema import TextFields

ROWS_A_VALUE = 1.5
"""A column is categorical where a value has this many rows or more on average."""


def guess_features(
    frame: pl.DataFrame, side: Literal["user", "item"]
) -> tuple[pl.DataFrame, list[Feature], list[str]]:
    """Features of a table, by these rules; each column left out is told in a remark.

    Strings with `|` are multi-valued (and become lists). Strings and integers with few distinct
    values are sparse; floats without nulls are dense. Left out: `x_name` and `raw_x` beside `x`
    (the same, readable), a column that is the first value of a multi-valued one, `scenario*`
    (already a column of the interactions), `rating*` and `label*`.
    """
    multi = [c for c in frame.columns if _is_multi(frame[c])]
    lists = frame.with_columns(pl.col(multi).str.split("|"))
    features, remarks = [], []
    for column in lists.columns:
        if column == f"{side}_key":
            continue
        kind, reason = _kind(lists, column, multi)
        if kind is None:
            remarks.append(f"{side}s.{column}: no feature ({reason})")
        else:
            features.append(Feature(column, side, kind))
            remarks.append(f"{side}s.{column}: {kind} feature")
    return lists, features, remarks


def guess_text(users: pl.DataFrame, items: pl.DataFrame) -> tuple[TextFields, list[str]]:
    """Texts for prompts: `title`, and the other readable columns, each thing once.

    Readable is a column of strings that is called `x_name` or has letters and is no raw id, not
    made of other columns (`text`, `raw_x`, the first value of a multi-valued column) and not `x`
    where `x_name` is there.
    """
    found = TextFields(
        item_title="title" if "title" in items.columns else None,
        item_attributes=[c for c in _readable(items) if c != "title"],
        user_attributes=_readable(users),
    )
    return found, [
        f"item text: {', '.join([found.item_title or 'no title', *found.item_attributes])}",
        f"user text: {', '.join(found.user_attributes) or 'none'}",
    ]


def _kind(
    frame: pl.DataFrame, column: str, multi: list[str]
) -> tuple[Literal["sparse", "multi", "dense"] | None, str]:
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
    """The column that already says what this one says."""
    base = column.removesuffix("_name").removeprefix("raw_")
    if base != column and base in frame.columns:
        return base
    for other in frame.columns:
        if frame[other].dtype == pl.List(pl.String) and frame[column].dtype == pl.String:
            if (frame[other].list.first() == frame[column]).all():
                return f"the first of {other}"
    return None


def _readable(frame: pl.DataFrame) -> list[str]:
    return [c for c in frame.columns if _is_readable(frame, c)]


def _is_readable(frame: pl.DataFrame, column: str) -> bool:
    values = frame[column]
    if column.startswith(("raw_", "scenario")) or column == "text":
        return False
    if f"{column}_name" in frame.columns:
        return False
    if values.dtype == pl.List(pl.String):
        return True
    if values.dtype != pl.String or column.endswith(("_key", "_id")):
        return False
    twin = _twin(frame, column)
    if twin and not column.endswith("_name"):
        return False
    words = values.drop_nulls()
    is_raw_id = words.n_unique() == len(words) and not words.str.contains(" ").any()
    with_letters = int(words.str.contains("[A-Za-z]").sum())
    return column.endswith("_name") or not is_raw_id and 2 * with_letters >= len(words) > 0


def _is_multi(values: pl.Series) -> bool:
    """Whether `|` separates values that come again, rather than being a sign in a sentence."""
    if values.dtype != pl.String or not values.str.contains("|", literal=True).any():
        return False
    pieces = values.drop_nulls().str.split("|").explode()
    return pieces.n_unique() * ROWS_A_VALUE <= len(pieces)
