"""What a dataset folder holds: features, tables, scenarios, labels, text; load, check, save.

A dataset folder::

    dataset.yaml                   this schema
    train/ valid/ test/*.parquet   interactions, ids already encoded
    users.parquet                  row i describes user index i; column `user_key` is the raw id
    items.parquet                  row i describes item index i; column `item_key` is the raw id

Columns of an interactions file: `user` and `item` (int32, indices into users.parquet and
items.parquet), `scenario` (int32), one column per sparse feature (int32, or list<int32> where
`multi`), one float32 column per dense feature and per label, and `timestamp` (int64) where the
schema names it. Nothing is null. Row 0 of a table stands for every id that training never saw.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from msrec.data.io.atomic_files import write_text
from msrec.data.io.paths import AnyPath, is_file, to_path
from msrec.data.io.validation import first_error, read_yaml

SPLITS = ("train", "valid", "test")
Split = Literal["train", "valid", "test"]
Protocol = Literal["scenario-wise", "temporal", "per-user-last"]
SCHEMA_FILE = "dataset.yaml"
ID_KEYS = {"user_id": "user_key", "item_id": "item_key"}
"""Id feature -> the key it holds, in users.parquet or items.parquet."""
LEAST_ROWS = 1000
"""That a table keeps when it is scaled down, if it has them."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scenario(_Part):
    """One scenario; its id is its position in `Schema.scenarios`."""

    name: str
    description: str


class SparseFeature(_Part):
    """A column of table rows: int32, or list<int32> where `multi`. Several may share a table."""

    name: str
    table: str
    multi: bool = False
    hashes: int | None = None
    """Rows that a value has, where it is hashed; None where a vocabulary has its row."""


class TextFields(_Part):
    """Which columns of items.parquet and users.parquet a prompt may read (strings)."""

    item_title: str | None = None
    item_attributes: list[str] = []
    user_attributes: list[str] = []


class SplitRecord(_Part):
    """How the rows were divided, so that a result can say it.

    `protocol` names the choice where it is a protocol of the field. `train_until` is the largest
    timestamp of the training split, None where there is no clock.
    """

    protocol: Protocol | None = None
    method: Literal["random", "time", "user_last", "given"]
    seed: int | None = None
    fractions: list[float] = []
    last: int | None = None
    """Test rows of a user, with method `user_last` by number."""
    train_until: int | None = None


class Schema(_Part):
    """All that a loader, a model and a prompt need to know of a dataset."""

    name: str
    description: str
    scenarios: list[Scenario] = Field(min_length=1)
    tables: dict[str, int]
    """Table name -> rows, row 0 (unknown) included."""
    sparse: list[SparseFeature] = Field(min_length=1)
    dense: list[str] = []
    labels: list[str] = Field(min_length=1)
    timestamp: str | None = None
    timestamp_unit: Literal["s", "ms"] | None = None
    """Of the timestamp since 1970; None where it is only an order."""
    text: TextFields = TextFields()
    split: SplitRecord
    num_users: int
    num_items: int
    counts: dict[str, Any] = {}
    """What conversion counted: rows per split and scenario, unknown ids, duplicates."""

    @model_validator(mode="after")
    def _check(self) -> "Schema":
        names = [s.name for s in self.scenarios]
        for what, values in (
            ("scenario names", names),
            ("feature names", [f.name for f in self.sparse] + self.dense + self.labels),
        ):
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise ValueError(f"{what} must differ; found twice: {', '.join(twice)}")
        for feature in self.sparse:
            if feature.table not in self.tables:
                raise ValueError(
                    f"sparse feature {feature.name!r} names table {feature.table!r}, which is not "
                    f"in tables ({', '.join(sorted(self.tables))})"
                )
        for table, rows in self.tables.items():
            if rows < 1:
                raise ValueError(f"table {table!r} must have at least 1 row; got {rows}")
        return self

    @property
    def num_scenarios(self) -> int:
        """Number of scenarios, S."""
        return len(self.scenarios)

    def size_of(self, side: Literal["user", "item"]) -> int:
        """Number of users or of items."""
        return self.num_users if side == "user" else self.num_items

    @property
    def columns(self) -> list[str]:
        """The columns of an interactions file that a loader reads."""
        stamp = [self.timestamp] if self.timestamp else []
        return [
            *("user", "item", "scenario"),
            *(f.name for f in self.sparse),
            *self.dense,
            *self.labels,
            *stamp,
        ]

    def per_scenario(self) -> "Schema":
        """The same with a copy of every table for each scenario, see `ScenarioIds`.

        Raises:
            ValueError: a table gets more rows than int32 ids can name.
        """
        tables = {name: rows * self.num_scenarios for name, rows in self.tables.items()}
        for name, rows in tables.items():
            if rows >= 2**31:
                raise ValueError(
                    f"a table must have fewer than {2**31} rows; {name} has {rows} with one copy "
                    f"for each of {self.num_scenarios} scenarios. Share the tables instead."
                )
        return self.model_copy(update={"tables": tables})

    def scaled(self, scale: float) -> "Schema":
        """The same with a share of every table's rows, see `FoldedIds`.

        Small tables keep `LEAST_ROWS` of their rows.
        """
        if scale == 1:
            return self
        tables = {
            name: max(round(rows * scale), min(rows, LEAST_ROWS))
            for name, rows in self.tables.items()
        }
        return self.model_copy(update={"tables": tables})

    def table_of(self, feature: str) -> str:
        """Name of the table that a sparse feature looks up."""
        return next(f.table for f in self.sparse if f.name == feature)


def load_schema(dataset: AnyPath | str) -> Schema:
    """Read and check `dataset.yaml`.

    Raises:
        FileNotFoundError: the folder or the file is not there.
        ValueError: the file is not a schema; names the file and the field.
    """
    path = to_path(dataset) / SCHEMA_FILE
    if not is_file(path):
        raise FileNotFoundError(
            f"{path} must exist: a dataset folder is made by `msrec convert` or `msrec synthetic`."
        )
    try:
        return Schema.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}.") from None


def save_schema(schema: Schema, dataset: Path | str) -> Path:
    """Write `dataset.yaml` last and in one step, so that a half-converted folder has none."""
    path = Path(dataset) / SCHEMA_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    values = schema.model_dump(mode="json")
    return write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
