"""Checks of raw tables: the types of their columns by role, and the values in them."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import polars as pl

from msrec.data.convert.raw_tables import SIDES, Chunk, RawTables, Side
from msrec.data.convert.row_filter import ROW, STRICT, RowFilter
from msrec.data.features.value_types import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    TEXT,
    TIME,
    VALUES,
    AllowedTypes,
    arrow_type,
    stored_series,
)
from msrec.data.io.names import check_name
from msrec.data.labels import LabelOptions
from msrec.data.schema import KEYS

RESERVED = ("user", "item", "scenario", *KEYS, "p_click")
MAX_INTEGER = 2**63 - 1
FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799
"""Beginning of the year 1 and end of the year 9999, in seconds since 1970."""
FINITE = ("be finite", "Fill it yourself or leave the column out.")
FITS = ("fit int64", "Convert the column to strings.")
OPTIONAL = "Correct it, or declare the label as `optional: true` if rows may lack it."
_SCALARS = "integers, strings, Booleans or dates"
_ROLES: dict[str, tuple[AllowedTypes, str]] = {
    "key": (AllowedTypes((INTEGER, TEXT)), "strings or integers to be a key"),
    "scenario": (AllowedTypes((INTEGER,)), "integers"),
    "scenario value": (AllowedTypes(VALUES), f"{_SCALARS} to be a scenario"),
    "label": (AllowedTypes((NUMBER, BOOLEAN)), "numbers, 0 or 1, to be a label"),
    "regression label": (AllowedTypes((NUMBER,)), "numbers to be a label of kind regression"),
    "weight": (AllowedTypes((NUMBER,)), "numbers to be a weight"),
    "impression": (AllowedTypes((INTEGER,)), "integers to be an impression"),
    "timestamp": (AllowedTypes((INTEGER,)), "integers (such as Unix seconds)"),
    "sparse": (AllowedTypes(VALUES), f"{_SCALARS} to be a sparse feature"),
    "multi": (AllowedTypes(VALUES, (True,)), f"lists of {_SCALARS} to be a multi feature"),
    "dense": (AllowedTypes((NUMBER,)), "numbers to be a dense feature"),
    "text": (
        AllowedTypes((*VALUES, NUMBER, TIME), (False, True)),
        "strings, numbers, Booleans, dates, times or lists of them to be a text",
    ),
    "split": (AllowedTypes((TEXT,)), "strings to be a split"),
}
"""Role of a column -> types that it may have, and those in words."""


def checked_tables(raw: RawTables) -> RawTables:
    """Returns the tables with keys as int64 or strings; refuses what a dataset folder cannot hold.

    Raises:
        ValueError: a column is missing or has a wrong name or type, a key is null or a duplicate,
            an integer does not fit int64, or a dense value is not finite. The message names file,
            column and row (from 0).
    """
    _check_names(raw)
    users, items = (_checked_side(raw, side) for side in SIDES)
    return dataclasses.replace(raw, users=users, items=items)


def _check_names(raw: RawTables) -> None:
    """Refuses names that a dataset folder cannot hold, or holds already for something else."""
    texts = [*raw.text_columns("user"), *raw.text_columns("item")]
    check_name("the name of a data set", raw.name)
    for scenario in raw.scenarios:
        check_name(f"{raw.location('interaction')}: the name of a scenario", scenario.name)
    for name in (*raw.labels, *texts):
        check_name("the name of a column", name)
    taken = dict.fromkeys(raw.copied_columns, raw.location("interaction"))
    for feature in raw.features:
        name, location = feature.name, raw.location(feature.side)
        check_name(f"{location}: the name of a column", name)
        if name in RESERVED or (feature.side == "interaction" and name == ROW):
            raise ValueError(
                f"feature names must not be {', '.join(RESERVED)}, which the dataset folder uses "
                f"itself, nor {ROW} in the interactions; found {name!r} in {location}. Rename it."
            )
        if name in taken:
            raise ValueError(
                f"names of features, labels and the timestamp must differ; {name!r} is in "
                f"{taken[name]} and in {location}. Rename one."
            )
        taken[name] = location


def _checked_side(raw: RawTables, side: Side) -> pl.DataFrame:
    frame, location, key = raw.table(side), raw.location(side), f"{side}_key"
    features = [feature for feature in raw.features if feature.side == side]
    needed = [key, *raw.text_columns(side), *(f.raw_column for f in features)]
    require_columns(frame.columns, needed, location)
    check_type(frame[key], "key", location)
    for column in raw.text_columns(side):
        check_type(frame[column], "text", location)
    for feature in features:
        check_type(frame[feature.raw_column], feature.kind, location)
    is_key = pl.col(key).is_not_null()
    STRICT.keep(frame, key, is_key, location, "have no null", "Remove the row or give it a key.")
    if frame[key].n_unique() < frame.height:  # costs a sixth of finding the first of each
        is_first = pl.col(key).is_first_distinct()
        STRICT.keep(frame, key, is_first, location, "hold each key once", "Remove the duplicates.")
    for column in [key, *(f.raw_column for f in features if f.kind != "dense")]:
        if (fits := _fits(frame[column])) is not None:
            STRICT.keep(frame, column, fits, location, *FITS)
    for feature in features:
        if feature.kind == "dense":
            column = feature.raw_column
            STRICT.keep(frame, column, _is_finite(column), location, *FINITE)
    return frame.with_columns(stored_series(frame[key]))


def checked_rows(raw: RawTables, chunk: Chunk, row_filter: RowFilter) -> pl.DataFrame:
    """Returns the rows of a chunk that a dataset may hold.

    Raises:
        ValueError: a column is missing or has a wrong type. Under the policy `fail` also: a label
            is not 0 or 1, a scenario is unknown, a key or timestamp is null, or a dense value is
            not finite.
    """
    location, frame = chunk
    roles = dict.fromkeys(KEYS, "key") | {"scenario": "scenario"}
    is_regression = {name: raw.label(name).kind == "regression" for name in raw.labels}
    roles |= {n: "regression label" if is_regression[n] else "label" for n in raw.labels}
    roles |= dict.fromkeys(raw.weights, "weight")
    if raw.impression:
        roles[raw.impression] = "impression"
    if raw.timestamp:
        roles[raw.timestamp] = "timestamp"
    roles |= {feature.raw_column: feature.kind for feature in raw.interaction_features}
    require_columns(frame.columns, [*roles], location)
    for column, role in roles.items():
        check_type(frame[column], role, location)
        if (
            role in ("key", "sparse", "multi", "impression")
            and (fits := _fits(frame[column])) is not None
        ):
            frame = row_filter.keep(frame, column, fits, location, *FITS)
    for column, good, must, advice in _row_rules(raw):
        frame = row_filter.keep(frame, column, good, location, must, advice)
    labels = [_label_values(name, raw.label(name)) for name in raw.labels]
    return frame.with_columns(*labels, *(stored_series(frame[key]) for key in KEYS))


def require_columns(
    columns: Sequence[str],
    required: Sequence[str],
    location: str,
    advice: str = "Add it or name another.",
    once: bool = False,
) -> None:
    """Refuses a table that lacks a column or, with `once`, has it several times.

    Raises:
        ValueError: names the file and the columns.
    """
    missing = [column for column in required if column not in columns]
    found = ", ".join(_visible(column) for column in columns if column != ROW) or "none"
    if missing:
        raise ValueError(
            f"{location} must have the column {', '.join(map(repr, missing))}; found {found}. "
            f"{advice}"
        )
    repeated = [column for column in required if once and columns.count(column) > 1]
    if repeated:
        raise ValueError(
            f"{location} must have the column {', '.join(map(repr, repeated))} once; found "
            f"{found}. {advice}"
        )


def _visible(name: str) -> str:
    """Returns a name, in quotes if it is empty or has white space around it."""
    return name if name and name == name.strip() else repr(name)


def _row_rules(raw: RawTables) -> Iterator[tuple[str, pl.Expr, str, str]]:
    """Yields (column, condition, condition in words, advice) for the interactions."""
    for key in KEYS:
        yield key, pl.col(key).is_not_null(), "have no null", "Give the row a key."
    names = ", ".join(f"{i} {scenario.name}" for i, scenario in enumerate(raw.scenarios))
    is_known = pl.col("scenario").is_between(0, len(raw.scenarios) - 1)
    yield "scenario", is_known, f"be a known scenario ({names})", "Declare it or drop the row."
    for label in raw.labels:
        yield from _label_rules(label, raw.label(label))
    for name in raw.weights:
        good = _is_finite(name) & (pl.col(name) >= 0)
        yield name, good, "be a finite number of at least 0", "Correct it."
    if raw.impression:
        is_known = pl.col(raw.impression).is_not_null()
        yield raw.impression, is_known, "have no null", "Give each row its impression."
    if raw.timestamp:
        time = pl.col(raw.timestamp)
        is_given = time.is_not_null()
        yield raw.timestamp, is_given, "have no null", "Remove the row or give it a time."
        if raw.timestamp_unit is None:
            yield raw.timestamp, time <= MAX_INTEGER, *FITS
        else:
            scale = {"s": 1, "ms": 1000}[raw.timestamp_unit]
            first, last = FIRST_SECOND * scale, (LAST_SECOND + 1) * scale - 1
            must = f"be a time in {raw.timestamp_unit} since 1970, in the years 1 to 9999"
            yield raw.timestamp, time.is_between(first, last), must, "Correct it or the unit."
    for feature in raw.interaction_features:
        if feature.kind == "dense":
            yield feature.raw_column, _is_finite(feature.raw_column), *FINITE


def _label_rules(name: str, options: LabelOptions) -> Iterator[tuple[str, pl.Expr, str, str]]:
    """Yields the rules for a label, as `_row_rules`."""
    value = pl.col(name).cast(pl.Float32)
    good, must = value.is_in([0.0, 1.0]), "be 0 or 1"
    if options.kind == "regression":
        good, must = value.is_finite(), "be a finite number"
        if options.transform == "log":
            good, must = good & (value >= 0), "be at least 0 and finite, as its transform is log"
    advice = "Correct it." if options.optional else OPTIONAL
    is_missing = value.is_null() | value.is_nan()
    if options.optional:
        good, must = is_missing | good, f"{must}, or null"
    if options.exists_where is not None:
        parent = options.exists_where
        exists = (pl.col(parent).cast(pl.Float32) == 1).fill_null(value=False)
        good = pl.when(exists).then(good).otherwise(is_missing | (value == 0))
        must = f"{must}; and 0 or null where {parent!r} is not 1"
    yield name, good, must, advice


def _label_values(name: str, options: LabelOptions) -> pl.Expr:
    """Returns the label as float32, NaN in rows that do not have it."""
    value = pl.col(name).cast(pl.Float32).fill_null(math.nan)
    if options.exists_where is None:
        return value
    exists = pl.col(options.exists_where).cast(pl.Float32) == 1
    return pl.when(exists).then(value).otherwise(math.nan).alias(name)


def _is_finite(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Float32).is_finite()


def _fits(values: pl.Series) -> pl.Expr | None:
    """Returns whether values, or all values of a list, fit int64; None if their type does."""
    kind = values.dtype
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else kind
    if inner != pl.UInt64:
        return None
    column = pl.col(values.name)
    if isinstance(kind, pl.Array):
        column = column.arr.to_list()
    largest = column if inner == kind else column.list.max()
    return largest.is_null() | (largest <= MAX_INTEGER)


def check_type(values: pl.Series, role: str, location: str) -> None:
    """Refuses a column of another type than its role allows.

    Raises:
        ValueError: names the file, the column and the type.
    """
    allowed, must = _ROLES[role]
    kind = arrow_type(values.dtype)
    if kind is None or not allowed.accept(kind):
        raise ValueError(
            f"{location}: column {values.name!r} must hold {must}; found type {values.dtype}. "
            "Convert it or name another column."
        )
