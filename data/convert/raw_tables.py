"""What every source hands to the writer: raw tables, checked row by row."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import polars as pl

from msrec.data.convert.row_filter import RowFilter, refuse
from msrec.data.schema import ID_KEYS, Scenario, TextFields

RESERVED = ("user", "item", "scenario")


@dataclass(frozen=True)
class Feature:
    """A column that becomes a feature; `multi` columns hold lists, `dense` ones numbers."""

    name: str
    side: Literal["user", "item", "interaction"]
    kind: Literal["sparse", "multi", "dense"] = "sparse"
    column: str = ""
    """Name in the raw frame, where it is not `name`."""

    @property
    def source(self) -> str:
        """Name of the column in the raw frame."""
        return self.column or self.name


ID_FEATURES = (
    Feature("user_id", "user", column=ID_KEYS["user_id"]),
    Feature("item_id", "item", column=ID_KEYS["item_id"]),
)


class Chunk(NamedTuple):
    """Some interactions and their file; column `row`, where there, is the row in it."""

    where: str
    frame: pl.DataFrame


@dataclass(frozen=True)
class Published:
    """Counts that a paper or a site gives for a data set, to hold a conversion against.

    `scenarios` has (rows, users, items) of a scenario, None where none is given.
    """

    name: str
    scenarios: dict[str, tuple[int, int | None, int | None]]

    @property
    def rows(self) -> int:
        """Rows of all scenarios."""
        return sum(rows for rows, _, _ in self.scenarios.values())


@dataclass(frozen=True)
class RawTables:
    """One data set before splitting and encoding.

    `interactions` has `user_key`, `item_key`, `scenario` (position in `scenarios`), the labels,
    the timestamp where there is one, and the features of side interaction; a frame, or chunks that
    are read once, in order. `users` has `user_key`, `items` has `item_key`, each once, beside their
    features and the text columns.
    """

    name: str
    description: str
    interactions: pl.DataFrame | Iterable[Chunk]
    users: pl.DataFrame
    items: pl.DataFrame
    scenarios: list[Scenario]
    features: tuple[Feature, ...]
    labels: tuple[str, ...] = ("label",)
    timestamp: str | None = None
    timestamp_unit: Literal["s", "ms"] | None = None
    text: TextFields = TextFields()
    files: dict[str, str] = field(default_factory=dict)
    """Where interactions, users and items came from; for error messages."""
    notes: tuple[str, ...] = ()
    """What the source decided by itself, for the person who converts."""
    unknown_keys: Literal["refuse", "add"] = "refuse"
    """A user or item that interactions name and no table has: refuse it, or add it with nothing but
    its key (and count it)."""
    published: tuple[Published, ...] = ()
    unlike_published: str = ""
    """What sets these scenarios apart from those of the scenario-wise protocol; empty: nothing."""

    def where(self, table: str) -> str:
        """The file a table came from."""
        return self.files.get(table, table)

    def frame(self, side: Literal["user", "item"]) -> tuple[str, pl.DataFrame]:
        """Table name and frame of a feature's side."""
        return ("users", self.users) if side == "user" else ("items", self.items)

    def chunks(self) -> Iterator[Chunk]:
        """The interactions, piece by piece."""
        if isinstance(self.interactions, pl.DataFrame):
            yield Chunk(self.where("interactions"), self.interactions)
        else:
            yield from self.interactions

    @property
    def interaction_features(self) -> list[Feature]:
        """Features whose column stands in the interactions."""
        return [feature for feature in self.features if feature.side == "interaction"]


def star_labels(above: float) -> dict[str, float]:
    """Labels of ratings from 1 to 5 and what each is above: the judged one, then the other stars.

    Example:
        >>> star_labels(3)
        {'label': 3, 'rating>1': 1, 'rating>2': 2, 'rating>4': 4}
    """
    return {
        "label": above,
        **{f"rating>{stars}": stars for stars in (1, 2, 3, 4) if stars != above},
    }


def check_tables(raw: RawTables) -> None:
    """Refuse users and items that the dataset folder may not hold.

    Raises:
        ValueError: a missing column, a wrong type, a key that is null or there twice, or a dense
            value that is not finite; names file, column and row (from 0).
    """
    text = raw.text
    wanted = {
        "users": ["user_key", *text.user_attributes],
        "items": ["item_key", *([text.item_title] if text.item_title else [])],
    }
    wanted["items"] += text.item_attributes
    for feature in raw.features:
        if feature.name in RESERVED:
            where = raw.where("interactions" if feature.side == "interaction" else "users")
            raise ValueError(
                f"feature names must not be {', '.join(RESERVED)}, which the dataset folder uses "
                f"itself; found {feature.name!r} in {where}."
            )
        if feature.side != "interaction":
            wanted[raw.frame(feature.side)[0]].append(feature.source)
    for table, key in (("users", "user_key"), ("items", "item_key")):
        frame, where = getattr(raw, table), raw.where(table)
        require_columns(frame, wanted[table], where)
        _check_keys(frame[key], where)
    for feature in raw.features:
        if feature.side != "interaction":
            table, frame = raw.frame(feature.side)
            values = frame[feature.source]
            _check_type(values, feature.kind, raw.where(table))
            if feature.kind == "dense":
                refuse(~finite(values), values, raw.where(table), *FINITE)


def checked_chunk(raw: RawTables, chunk: Chunk, faults: RowFilter) -> pl.DataFrame:
    """The rows of a chunk that a dataset may hold; columns as `RawTables.interactions` says.

    Raises:
        ValueError: a column is missing or has a wrong type; and under the policy `fail` a label
            other than 0 or 1, an unknown scenario, a null key or time, or a dense value that is not
            finite.
    """
    where, frame = chunk
    stamp = [raw.timestamp] if raw.timestamp else []
    features = raw.interaction_features
    wanted = ["user_key", "item_key", "scenario", *raw.labels, *stamp]
    require_columns(frame, [*wanted, *(f.source for f in features)], where)
    _check_scenario_type(frame["scenario"], where)
    for key in ("user_key", "item_key"):
        values = frame[key]
        frame = faults.keep(frame, values.is_null(), values, where, "have no null", "Name it.")
    names = ", ".join(f"{i} {s.name}" for i, s in enumerate(raw.scenarios))
    values = frame["scenario"]
    known = values.is_between(0, len(raw.scenarios) - 1)
    must = f"be a known scenario ({names})"
    frame = faults.keep(frame, ~known, values, where, must, "Declare it or drop it.")
    for label in raw.labels:
        values = frame[label]
        _check_label_type(values, where)
        known = values.cast(pl.Float32).is_in([0.0, 1.0])
        frame = faults.keep(frame, ~known, values, where, "be 0 or 1", "Correct it.")
    if raw.timestamp:
        values = frame[raw.timestamp]
        _check_timestamp_type(values, where)
        advice = "Remove the row or give it a time."
        frame = faults.keep(frame, values.is_null(), values, where, "have no null", advice)
    for feature in features:
        values = frame[feature.source]
        _check_type(values, feature.kind, where)
        if feature.kind == "dense":
            frame = faults.keep(frame, ~finite(values), values, where, *FINITE)
    return frame


FINITE = ("be finite", "Fill it yourself or leave the column out.")


def finite(values: pl.Series) -> pl.Series:
    """Where a number is neither null, NaN nor infinite once it is float32."""
    return values.cast(pl.Float32).is_finite().fill_null(value=False)


def require_columns(frame: pl.DataFrame, columns: list[str], where: str) -> None:
    """Refuse a frame that lacks a column.

    Raises:
        ValueError: names the file and the missing columns.
    """
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"{where} must have the column {', '.join(repr(m) for m in missing)}; found "
            f"{', '.join(frame.columns)}. Add it or name another."
        )


def _check_keys(keys: pl.Series, where: str) -> None:
    refuse(keys.is_null(), keys, where, "have no null", "Remove the row or give it a key.")
    refuse(~keys.is_first_distinct(), keys, where, "hold each key once", "Remove the duplicates.")


def _check_scenario_type(scenario: pl.Series, where: str) -> None:
    if not scenario.dtype.is_integer():
        raise ValueError(f"{where}: column 'scenario' must be an integer; found {scenario.dtype}.")


def _check_label_type(label: pl.Series, where: str) -> None:
    if not (label.dtype.is_numeric() or label.dtype == pl.Boolean):
        raise ValueError(
            f"{where}: column {label.name!r} must be a number, 0 or 1, to be a label; found type "
            f"{label.dtype}. Convert it or name another label column."
        )


def _check_timestamp_type(stamp: pl.Series, where: str) -> None:
    if not stamp.dtype.is_integer():
        raise ValueError(
            f"{where}: column {stamp.name!r} must be an integer (say, Unix seconds); found type "
            f"{stamp.dtype}. Convert it first."
        )


def _check_type(values: pl.Series, kind: str, where: str) -> None:
    found = f"{where}: column {values.name!r}"
    is_list = values.dtype.base_type() is pl.List
    if kind == "dense":
        if not values.dtype.is_numeric():
            raise ValueError(
                f"{found} must be a number to be a dense feature; found type {values.dtype}."
            )
    elif is_list != (kind == "multi") or values.dtype.is_float():
        wanted = "lists" if kind == "multi" else "strings or integers"
        raise ValueError(
            f"{found} must hold {wanted} to be a {kind} feature; found type {values.dtype}."
        )
