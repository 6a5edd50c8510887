"""What every source hands to the writer: raw tables, checked row by row."""

from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from msrec.data.schema import Scenario, TextFields

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
    Feature("user_id", "user", column="user_key"),
    Feature("item_id", "item", column="item_key"),
)


@dataclass(frozen=True)
class RawTables:
    """One data set before splitting and encoding.

    `interactions` has `user_key`, `item_key`, `scenario` (position in `scenarios`), the labels,
    the timestamp where there is one, and the features of side interaction. `users` has `user_key`,
    `items` has `item_key`, each once, beside their features and the text columns.
    """

    name: str
    description: str
    interactions: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame
    scenarios: list[Scenario]
    features: tuple[Feature, ...]
    labels: tuple[str, ...] = ("label",)
    timestamp: str | None = None
    text: TextFields = TextFields()
    files: dict[str, str] = field(default_factory=dict)
    """Where interactions, users and items came from; for error messages."""
    notes: tuple[str, ...] = ()
    """What the source decided by itself, for the person who converts."""

    def where(self, table: str) -> str:
        """The file a table came from."""
        return self.files.get(table, table)

    def frame(self, side: str) -> tuple[str, pl.DataFrame]:
        """Table name and frame of a feature's side."""
        frames = {"user": "users", "item": "items", "interaction": "interactions"}
        return frames[side], getattr(self, frames[side])


def check_raw(raw: RawTables) -> None:
    """Refuse what the dataset folder may not hold.

    Raises:
        ValueError: a missing column, a wrong type, a null or non-finite value, a label other than
            0 or 1, an unknown scenario, a key that is there twice, or an interaction whose user or
            item is in no table; names file, column and row (from 0).
    """
    _check_columns(raw)
    for table, key in (("users", "user_key"), ("items", "item_key")):
        _check_keys(getattr(raw, table)[key], raw.where(table))
    _check_scenario(raw)
    for label in raw.labels:
        _check_label(raw.interactions[label], raw.where("interactions"))
    if raw.timestamp:
        _check_timestamp(raw.interactions[raw.timestamp], raw.where("interactions"))
    for feature in raw.features:
        table, frame = raw.frame(feature.side)
        _check_feature(frame[feature.source], feature.kind, raw.where(table))
    for key, table in (("user_key", "users"), ("item_key", "items")):
        _check_known(raw, key, table)


def refuse(bad: pl.Series, values: pl.Series, where: str, must: str, advice: str) -> None:
    """Raise one sentence about the first row where `bad` is true, if there is one.

    Raises:
        ValueError: a row is bad.
    """
    mask = bad.fill_null(value=True)
    count = int(mask.sum())
    if count:
        row = int(mask.arg_max() or 0)
        raise ValueError(
            f"{where}: column {values.name!r} must {must}; found {values[row]!r} in row {row} "
            f"({count} such rows of {len(values)}). {advice}"
        )


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


def _check_columns(raw: RawTables) -> None:
    stamp = [raw.timestamp] if raw.timestamp else []
    wanted = {
        "interactions": ["user_key", "item_key", "scenario", *raw.labels, *stamp],
        "users": ["user_key", *raw.text.user_attributes],
        "items": ["item_key", *raw.text.item_attributes],
    }
    if raw.text.item_title:
        wanted["items"].append(raw.text.item_title)
    for feature in raw.features:
        if feature.name in RESERVED:
            raise ValueError(
                f"feature names must not be {', '.join(RESERVED)}, which the dataset folder uses "
                f"itself; found {feature.name!r} in {raw.where(raw.frame(feature.side)[0])}."
            )
        wanted[raw.frame(feature.side)[0]].append(feature.source)
    for table, columns in wanted.items():
        require_columns(getattr(raw, table), columns, raw.where(table))


def _check_keys(keys: pl.Series, where: str) -> None:
    refuse(keys.is_null(), keys, where, "have no null", "Remove the row or give it a key.")
    refuse(~keys.is_first_distinct(), keys, where, "hold each key once", "Remove the duplicates.")


def _check_scenario(raw: RawTables) -> None:
    scenario, where = raw.interactions["scenario"], raw.where("interactions")
    if not scenario.dtype.is_integer():
        raise ValueError(f"{where}: column 'scenario' must be an integer; found {scenario.dtype}.")
    known = (scenario >= 0) & (scenario < len(raw.scenarios))
    names = ", ".join(f"{i} {s.name}" for i, s in enumerate(raw.scenarios))
    refuse(~known, scenario, where, f"be a known scenario ({names})", "Declare it or drop it.")


def _check_label(label: pl.Series, where: str) -> None:
    if not (label.dtype.is_numeric() or label.dtype == pl.Boolean):
        raise ValueError(
            f"{where}: column {label.name!r} must be a number, 0 or 1, to be a label; found type "
            f"{label.dtype}. Convert it or name another label column."
        )
    refuse(~label.cast(pl.Float32).is_in([0.0, 1.0]), label, where, "be 0 or 1", "Correct it.")


def _check_timestamp(stamp: pl.Series, where: str) -> None:
    if not stamp.dtype.is_integer():
        raise ValueError(
            f"{where}: column {stamp.name!r} must be an integer (say, Unix seconds); found type "
            f"{stamp.dtype}. Convert it first."
        )
    refuse(stamp.is_null(), stamp, where, "have no null", "Remove the row or give it a time.")


def _check_feature(values: pl.Series, kind: str, where: str) -> None:
    found = f"{where}: column {values.name!r}"
    is_list = values.dtype.base_type() is pl.List
    if kind == "dense":
        if not values.dtype.is_numeric():
            raise ValueError(
                f"{found} must be a number to be a dense feature; found type {values.dtype}."
            )
        finite = values.cast(pl.Float32).is_finite()
        refuse(~finite, values, where, "be finite", "Fill it yourself or leave the column out.")
    elif is_list != (kind == "multi") or values.dtype.is_float():
        wanted = "lists" if kind == "multi" else "strings or integers"
        raise ValueError(
            f"{found} must hold {wanted} to be a {kind} feature; found type {values.dtype}."
        )


def _check_known(raw: RawTables, key: str, table: str) -> None:
    keys, known = raw.interactions[key], getattr(raw, table)[key]
    if keys.dtype != known.dtype:
        raise ValueError(
            f"{raw.where('interactions')}: column {key!r} must have the type it has in "
            f"{raw.where(table)}, {known.dtype}; found {keys.dtype}."
        )
    absent = keys.is_null() | ~keys.is_in(known.implode())
    must = f"hold only keys of {raw.where(table)}"
    refuse(absent, keys, raw.where("interactions"), must, f"Add them to {table} or drop the rows.")
