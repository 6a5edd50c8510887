"""Schema of a dataset folder: scenarios, features, tables, labels and text fields.

A dataset folder::

    dataset.yaml                   this schema
    train/ valid/ test/*.parquet   interactions with encoded ids
    users.parquet                  row i describes user index i; column `user_key` is the raw id
    items.parquet                  row i describes item index i; column `item_key` is the raw id
    histories/PROTOCOL/            optional, the earlier events of each row; see `HistoryIndex`

Columns of an interactions file: `user` and `item` (int32, indices into users.parquet and
items.parquet), `scenario` (int32), one column per sparse feature (int32, list<int32> if `multi`,
int64 if `managed`), one float32 column per dense feature, label and weight, and `timestamp` and the
impression (int64) if the schema names them. There are no nulls; a label that is missing is NaN. Row
0 of a table is for every id that training never saw.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from msrec.data.io.names import check_name, module_name
from msrec.data.io.paths import AnyPath, is_file, to_path
from msrec.data.io.validation import StrictModel, first_error
from msrec.data.io.yaml_files import read_yaml, write_yaml
from msrec.data.labels import LabelOptions, check_labels, options_of, weight_columns

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
Protocol = Literal["scenario-wise", "temporal", "per-user-last"]
HistoryProtocol = Literal["stream", "frozen"]
"""Splits whose rows are events of a history: all splits (`stream`) or only train (`frozen`)."""
EventChoice = Literal["all", "positive"]
"""Rows that are events: all, or those whose first label is 1."""
EventOrder = Literal["timestamp", "rows"]
"""Order of events: by the schema's timestamp, or as the rows are in the files."""
SCHEMA_FILE = "dataset.yaml"
ID_KEYS = {"user_id": "user_key", "item_id": "item_key"}
"""Id feature -> the key that it holds, in users.parquet or items.parquet."""
KEYS = tuple(ID_KEYS.values())
TableName = Annotated[str, AfterValidator(module_name)]
"""Name of an embedding table, which is also a file of an export and a module of the model."""
TableRows = Annotated[int, Field(ge=1, lt=1 << 31)]
"""Rows of an embedding table; ids are int32."""
MIN_SCALED_ROWS = 1000
"""Rows that a table keeps when it is scaled down, if it has them."""


class Scenario(StrictModel):
    """A scenario; its id is its position in `Schema.scenarios`."""

    name: str
    """Short name, unique."""
    description: str
    """One sentence, for prompts."""


class SparseFeature(StrictModel):
    """A column of table rows: int32, or list<int32> if `multi`. Several may share a table.

    A `managed` column has hashes of values instead, int64, which get table rows while the model
    trains; see `ManagedIds`. Its table has no other feature.
    """

    name: str
    """Name of the column."""
    table: TableName
    """Key in `tables`."""
    multi: bool = False
    """Whether a row has a list of ids."""
    hashes: int | None = None
    """Table rows per value of a hashed feature; None if the feature has a vocabulary."""
    managed: bool = False
    """Whether the model gives table rows to values while it trains, and takes them away again."""
    separator: str | None = None
    """Separator of the values if raw rows may give them in one string; None if only as a list."""


class TextFields(StrictModel):
    """Columns (strings) of items.parquet and users.parquet that a prompt may read."""

    item_title: str | None = None
    """Column of items.parquet with the title."""
    item_attributes: list[str] = []
    """Further columns of items.parquet."""
    user_attributes: list[str] = []
    """Columns of users.parquet."""


class SplitRecord(StrictModel):
    """Method by which the rows were split, for reports."""

    protocol: Protocol | None = None
    """Protocol of the literature that the choice follows, if any."""
    method: Literal["random", "time", "user_last", "given"]
    """Rule that puts a row in a split."""
    seed: int | None = None
    """Seed of a random split."""
    fractions: list[float] = []
    """Shares of the rows in train, valid and test."""
    last: int | None = None
    """Test rows per user, with method `user_last` by number."""
    train_until: int | None = None
    """Largest timestamp of the training split; None without timestamps."""


class HistoryLengths(StrictModel):
    """Lengths of the histories of a split's rows, in events."""

    rows: int
    """Rows of the split."""
    without_history: int
    """Rows that no event precedes."""
    median: int
    """Median length, over all rows."""
    p95: int
    """95th percentile of the lengths."""


class HistoryRecord(StrictModel):
    """Contents of an index of histories, for reports."""

    events: EventChoice
    """Rows that are events."""
    order: EventOrder
    """Order of the events of a user."""
    num_events: int
    """Events of all users."""
    num_users: int
    """Users with at least one event."""
    lengths: dict[Split, HistoryLengths]
    """Split -> lengths of the histories of its rows."""


class Schema(StrictModel):
    """Description of a dataset for loaders, models and prompts."""

    name: str
    """Name of the data set."""
    description: str
    """One sentence about the app, for prompts."""
    scenarios: list[Scenario] = Field(min_length=1)
    """Scenarios; ids in the files are positions in this list."""
    tables: dict[TableName, TableRows]
    """Table name -> rows, row 0 (unknown) included."""
    sparse: list[SparseFeature] = Field(min_length=1)
    """Features of ids, in the order of the model's embeddings."""
    dense: list[str] = []
    """Features of numbers, float32."""
    labels: list[str] = Field(min_length=1)
    """Labels. The first one is binary and exists in every row."""
    label_options: dict[str, LabelOptions] = {}
    """Label -> its kind and the rows that have it; a label that is not in it is binary."""
    weight: str | None = None
    """Column with the weight of each row, float32, at least 0; None if all rows weigh the same."""
    impression: str | None = None
    """Column with the id of the list that a row was shown in, int64; None if it is unknown."""
    timestamp: str | None = None
    """Column of timestamps, int64; None if rows have none."""
    timestamp_unit: Literal["s", "ms"] | None = None
    """Unit of the timestamp since 1970; None if timestamps only order the rows."""
    text: TextFields = TextFields()
    """Columns of texts."""
    split: SplitRecord
    """Method by which the rows were split."""
    num_users: int
    """Rows of users.parquet."""
    num_items: int
    """Rows of items.parquet."""
    raw_versions: dict[str, int] = {}
    """Raw table -> its version, if it was a Delta table."""
    counts: dict[str, Any] = {}
    """Counts of the conversion: rows per split and scenario, unknown ids, duplicates."""
    histories: dict[HistoryProtocol, HistoryRecord] = {}
    """Indices of histories in the folder, made by `msrec histories`."""

    @model_validator(mode="after")
    def _check(self) -> "Schema":
        check_labels(self.labels, self.label_options)
        features = [*(f.name for f in self.sparse), *self.dense, *self.labels, *self.weights]
        scenarios = [s.name for s in self.scenarios]
        texts = [*self.text.item_attributes, *self.text.user_attributes]
        for name in (self.name, *scenarios, *features, *self.tables, *texts):
            check_name("the name of a data set, scenario, feature, label, table or text", name)
        for what, names in (("scenario names", scenarios), ("feature names", features)):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{what} must differ; found twice: {', '.join(repeated)}")
        for feature in self.sparse:
            if feature.table not in self.tables:
                raise ValueError(
                    f"sparse feature {feature.name!r} names table {feature.table!r}, which is not "
                    f"in tables ({', '.join(sorted(self.tables))})"
                )
        for feature in self.managed:
            others = [f.name for f in self.sparse if f.table == feature.table and f != feature]
            if feature.multi or feature.hashes is not None or others:
                raise ValueError(
                    f"the managed feature {feature.name!r} must have one value in a row, no hashes "
                    f"and a table without other features; found multi={feature.multi}, "
                    f"hashes={feature.hashes} and table {feature.table!r} with {others}"
                )
        return self

    @property
    def managed(self) -> list[SparseFeature]:
        """Sparse features whose table rows the model manages."""
        return [feature for feature in self.sparse if feature.managed]

    @property
    def num_scenarios(self) -> int:
        """Number of scenarios, S."""
        return len(self.scenarios)

    def label(self, name: str) -> LabelOptions:
        """Returns the options of a label."""
        return options_of(self.label_options, name)

    @property
    def weights(self) -> list[str]:
        """Columns with weights, of rows and of labels, each once."""
        return weight_columns(self.weight, self.labels, self.label_options)

    def size_of(self, side: Literal["user", "item"]) -> int:
        """Returns the number of users or of items."""
        return self.num_users if side == "user" else self.num_items

    @property
    def columns(self) -> list[str]:
        """Columns of an interactions file that a loader reads."""
        sparse = [feature.name for feature in self.sparse]
        others = [name for name in (self.timestamp, self.impression) if name]
        numbers = [*self.dense, *self.labels, *self.weights]
        return ["user", "item", "scenario", *sparse, *numbers, *others]

    def per_scenario(self) -> "Schema":
        """Returns the schema with a copy of every table for each scenario, see `ScenarioIds`.

        Raises:
            ValueError: a table gets more rows than int32 ids.
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
        """Returns the schema with a share of every table's rows, see `ScaledIds`.

        Small tables keep up to `MIN_SCALED_ROWS` of their rows.
        """
        if scale == 1:
            return self
        tables = {
            name: max(round(rows * scale), min(rows, MIN_SCALED_ROWS))
            for name, rows in self.tables.items()
        }
        return self.model_copy(update={"tables": tables})

    def table_of(self, feature: str) -> str:
        """Returns the name of the table that a sparse feature looks up."""
        return next(f.table for f in self.sparse if f.name == feature)


def load_schema(dataset: AnyPath | str) -> Schema:
    """Reads and checks `dataset.yaml`.

    Raises:
        FileNotFoundError: the folder or the file does not exist.
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
    """Writes `dataset.yaml`, in one step; called last, so that a half-converted folder has none."""
    path = Path(dataset) / SCHEMA_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    values = schema.model_dump(mode="json")
    return write_yaml(path, values)
