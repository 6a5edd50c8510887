"""Raw tables that each source hands to the conversion, and the checks on them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import polars as pl

from msrec.data.convert.row_filter import ROW, STRICT, RowFilter
from msrec.data.io.names import check_name
from msrec.data.schema import ID_KEYS, Scenario, TextFields

Progress = Callable[[str, int, int], None]
"""Function of (stage, done, total) that is called as the work goes on."""
Side = Literal["user", "item"]
SIDES: tuple[Side, ...] = ("user", "item")
PublishedCounts = dict[str, dict[str, tuple[int, int, int]]]
"""Counts that papers and sites give: title -> scenario -> (rows, users, items)."""
RESERVED = ("user", "item", "scenario", "user_key", "item_key", "p_click")
FINITE = ("be finite", "Fill it yourself or leave the column out.")
_TYPE_RULES: dict[str, tuple[Callable[[pl.DataType], bool], str]] = {
    "scenario": (lambda kind: kind.is_integer(), "be an integer"),
    "label": (
        lambda kind: kind.is_numeric() or kind == pl.Boolean,
        "be a number, 0 or 1, to be a label",
    ),
    "timestamp": (lambda kind: kind.is_integer(), "be an integer (such as Unix seconds)"),
    "sparse": (
        lambda kind: not (kind == pl.List or kind.is_float()),
        "hold strings or integers to be a sparse feature",
    ),
    "multi": (lambda kind: kind == pl.List, "hold lists to be a multi feature"),
    "dense": (lambda kind: kind.is_numeric(), "be a number to be a dense feature"),
}
"""Role of a column -> condition on its type, and the condition in words."""


@dataclass(frozen=True)
class Feature:
    """A raw column that becomes a feature; `multi` columns hold lists, `dense` ones numbers."""

    name: str
    side: Literal["user", "item", "interaction"]
    kind: Literal["sparse", "multi", "dense"] = "sparse"
    column: str = ""
    """Name in the raw table; empty if it is `name`."""

    @property
    def raw_column(self) -> str:
        """Name of the column in the raw table."""
        return self.column or self.name


ID_FEATURES = (
    Feature("user_id", "user", column=ID_KEYS["user_id"]),
    Feature("item_id", "item", column=ID_KEYS["item_id"]),
)


class Chunk(NamedTuple):
    """Some interactions and the file they come from.

    A column `row`, if there is one, has the number of each row in that file.
    """

    location: str
    frame: pl.DataFrame


@dataclass(frozen=True)
class RawTables:
    """A data set before splitting and encoding.

    `interactions` has `user_key`, `item_key`, `scenario` (position in `scenarios`), the labels, the
    timestamp if there is one, and the features of side interaction. It is a frame, or chunks that
    are read once, in order. `users` has `user_key` and `items` has `item_key`, each key once, with
    their features and text columns.
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
    """Files of `interactions`, `users` and `items`, for error messages."""
    notes: tuple[str, ...] = ()
    """Decisions that the source made by itself, to be shown to the user."""
    unknown_keys: Literal["refuse", "add"] = "refuse"
    """Treatment of users and items that only interactions name: refuse them, or add (and count)
    rows that have nothing but the key."""
    published: PublishedCounts = field(default_factory=dict)
    differs_from_published: str = ""
    """How the scenarios differ from those of the scenario-wise protocol; empty if they do not."""

    def table(self, side: Side) -> pl.DataFrame:
        """Returns the users or the items."""
        return self.users if side == "user" else self.items

    def location(self, side: Literal["user", "item", "interaction"]) -> str:
        """Returns the file that a table comes from."""
        return self.files.get(f"{side}s", f"{side}s")

    def text_columns(self, side: Side) -> list[str]:
        """Returns the columns of a table that prompts may read, each once."""
        if side == "user":
            return self.text.user_attributes
        title = [self.text.item_title] if self.text.item_title else []
        return list(dict.fromkeys([*title, *self.text.item_attributes]))

    def chunks(self) -> Iterator[Chunk]:
        """Yields the interactions in order."""
        if isinstance(self.interactions, pl.DataFrame):
            yield Chunk(self.location("interaction"), self.interactions)
        else:
            yield from self.interactions

    @property
    def interaction_features(self) -> list[Feature]:
        """Features that are columns of the interactions."""
        return [feature for feature in self.features if feature.side == "interaction"]

    @property
    def copied_columns(self) -> list[str]:
        """Columns of the interactions that are written as they are: labels and timestamp."""
        return [*self.labels, *([self.timestamp] if self.timestamp else [])]


def star_labels(above: float) -> dict[str, float]:
    """Returns the labels of ratings from 1 to 5, each with the rating that it must exceed.

    The first label is the one that models are judged by.

    Example:
        >>> star_labels(3)
        {'label': 3, 'rating>1': 1, 'rating>2': 2, 'rating>4': 4}
    """
    others = {f"rating>{stars}": stars for stars in (1, 2, 3, 4) if stars != above}
    return {"label": above, **others}


def check_tables(raw: RawTables) -> None:
    """Refuses users and items that a dataset folder cannot hold.

    Raises:
        ValueError: a column is missing or has a wrong name or type, a key is null or a duplicate,
            or a dense value is not finite. The message names file, column and row (from 0).
    """
    _check_names(raw)
    for side in SIDES:
        frame, location, key = raw.table(side), raw.location(side), f"{side}_key"
        features = [feature for feature in raw.features if feature.side == side]
        needed = [key, *raw.text_columns(side), *(f.raw_column for f in features)]
        require_columns(frame.columns, needed, location)
        is_key = pl.col(key).is_not_null()
        STRICT.keep(
            frame, key, is_key, location, "have no null", "Remove the row or give it a key."
        )
        is_first = pl.col(key).is_first_distinct()
        STRICT.keep(frame, key, is_first, location, "hold each key once", "Remove the duplicates.")
        for feature in features:
            column = feature.raw_column
            _check_type(frame[column], feature.kind, location)
            if feature.kind == "dense":
                STRICT.keep(frame, column, _is_finite(column), location, *FINITE)


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


def checked_rows(raw: RawTables, chunk: Chunk, row_filter: RowFilter) -> pl.DataFrame:
    """Returns the rows of a chunk that a dataset may hold.

    Raises:
        ValueError: a column is missing or has a wrong type. Under the policy `fail` also: a label
            is not 0 or 1, a scenario is unknown, a key or timestamp is null, or a dense value is
            not finite.
    """
    location, frame = chunk
    roles = {"scenario": "scenario", **dict.fromkeys(raw.labels, "label")}
    if raw.timestamp:
        roles[raw.timestamp] = "timestamp"
    roles |= {feature.raw_column: feature.kind for feature in raw.interaction_features}
    require_columns(frame.columns, ["user_key", "item_key", *roles], location)
    for column, role in roles.items():
        _check_type(frame[column], role, location)
    for column, good, must, advice in _row_rules(raw):
        frame = row_filter.keep(frame, column, good, location, must, advice)
    return frame


def require_columns(
    columns: Sequence[str],
    required: Sequence[str],
    location: str,
    advice: str = "Add it or name another.",
) -> None:
    """Refuses a table that lacks a column.

    Raises:
        ValueError: names the file and the missing columns.
    """
    missing = [column for column in required if column not in columns]
    if missing:
        raise ValueError(
            f"{location} must have the column {', '.join(map(repr, missing))}; found "
            f"{', '.join(columns)}. {advice}"
        )


def _row_rules(raw: RawTables) -> Iterator[tuple[str, pl.Expr, str, str]]:
    """Yields (column, condition, condition in words, advice) for the interactions."""
    for key in ("user_key", "item_key"):
        yield key, pl.col(key).is_not_null(), "have no null", "Give the row a key."
    names = ", ".join(f"{i} {scenario.name}" for i, scenario in enumerate(raw.scenarios))
    is_known = pl.col("scenario").is_between(0, len(raw.scenarios) - 1)
    yield "scenario", is_known, f"be a known scenario ({names})", "Declare it or drop the row."
    for label in raw.labels:
        is_binary = pl.col(label).cast(pl.Float32).is_in([0.0, 1.0])
        yield label, is_binary, "be 0 or 1", "Correct it."
    if raw.timestamp:
        is_known = pl.col(raw.timestamp).is_not_null()
        yield raw.timestamp, is_known, "have no null", "Remove the row or give it a time."
    for feature in raw.interaction_features:
        if feature.kind == "dense":
            yield feature.raw_column, _is_finite(feature.raw_column), *FINITE


def _is_finite(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Float32).is_finite()


def _check_type(values: pl.Series, role: str, location: str) -> None:
    is_right, must = _TYPE_RULES[role]
    if not is_right(values.dtype):
        raise ValueError(
            f"{location}: column {values.name!r} must {must}; found type {values.dtype}. Convert "
            "it or name another column."
        )
