"""Raw tables that each source hands to the conversion, and the checks on them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import polars as pl

from msrec.data.labels import LabelOptions, options_of, weight_columns
from msrec.data.schema import ID_KEYS, Scenario, TextFields

Progress = Callable[[str, int, int], None]
"""Function of (stage, done, total) that is called as the work goes on."""
Side = Literal["user", "item"]
SIDES: tuple[Side, ...] = ("user", "item")
PublishedCounts = dict[str, dict[str, tuple[int, int, int]]]
"""Counts that papers and sites give: title -> scenario -> (rows, users, items)."""


@dataclass(frozen=True)
class Feature:
    """A raw column that becomes a feature; `multi` columns hold lists, `dense` ones numbers."""

    name: str
    side: Literal["user", "item", "interaction"]
    kind: Literal["sparse", "multi", "dense"] = "sparse"
    column: str = ""
    """Name in the raw table; empty if it is `name`."""
    separator: str | None = None
    """Separator of the values of a `multi` column that held strings."""

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
    label_options: dict[str, LabelOptions] = field(default_factory=dict)
    """Kinds of labels, as in `Schema`, without their scales."""
    weight: str | None = None
    impression: str | None = None
    timestamp: str | None = None
    timestamp_unit: Literal["s", "ms"] | None = None
    text: TextFields = TextFields()
    files: dict[str, str] = field(default_factory=dict)
    """Files of `interactions`, `users` and `items`, for error messages."""
    versions: dict[str, int] = field(default_factory=dict)
    """Versions of those of the tables that are Delta or Iceberg tables."""
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
        """Columns of the interactions that are written as they are."""
        others = [name for name in (self.timestamp, self.impression) if name]
        return [*self.labels, *self.weights, *others]

    def label(self, name: str) -> LabelOptions:
        """Returns the options of a label."""
        return options_of(self.label_options, name)

    @property
    def weights(self) -> list[str]:
        """Columns with weights, of rows and of labels, each once."""
        return weight_columns(self.weight, self.labels, self.label_options)


def star_labels(above: float) -> dict[str, float]:
    """Returns the labels of ratings from 1 to 5, each with the rating that it must exceed.

    The first label is the one that models are judged by.

    Example:
        >>> star_labels(3)
        {'label': 3, 'rating>1': 1, 'rating>2': 2, 'rating>4': 4}
    """
    others = {f"rating>{stars}": stars for stars in (1, 2, 3, 4) if stars != above}
    return {"label": above, **others}
