"""Embedding tables to plan for, and how to read a list of them from a file."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from msrec.data.io.names import module_name
from msrec.data.io.validation import StrictModel, VectorSize, Width, first_error
from msrec.data.io.yaml_files import read_yaml
from msrec.tools.planner.popularity import (
    Popularity,
    counted_popularity,
    equal_popularity,
    zipf_popularity,
)

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Optimizer = Literal["rowwise_adagrad", "adam"]
Comms = Literal["fp32", "fp16"]
"""Type in which ranks send each other vectors, by TorchRec's quantised communication."""
Sharding = Literal[
    "table_wise",
    "row_wise",
    "table_row_wise",
    "column_wise",
    "table_column_wise",
    "grid_shard",
    "data_parallel",
]
Kernel = Literal["fused", "fused_uvm", "fused_uvm_caching"]
"""Table on the accelerator, in host memory, or in host memory with a cache on the accelerator."""
COLUMN_SHARDINGS: tuple[Sharding, ...] = ("column_wise", "table_column_wise", "grid_shard")
"""Sharding types that divide the columns of a table."""
SEQUENCE_SHARDINGS: tuple[Sharding, ...] = (
    "table_wise",
    "row_wise",
    "column_wise",
    "data_parallel",
)
"""Sharding types that TorchRec has for an EmbeddingCollection."""
MIN_PARTITION = 128
"""Columns of a column shard of a table that does not name them, as in TorchRec."""
RUN_SHARDINGS: tuple[Sharding, ...] = ("table_wise", "row_wise")
"""Sharding types that a plan for a run chooses from; others only if they are asked for."""
CachePolicy = Literal["lru", "lfu"]
"""Rows that leave FBGEMM's cache first: least recently used, or least frequently used ones."""
Kind = Literal["pooled", "sequence"]
VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
ROW_BYTES = {"int8": 8}
"""Bytes that a row has besides its values: scale and bias of 8-bit integers."""
Rows = Annotated[int, Field(ge=1, lt=1 << 40)]
"""Rows of a table; more than the int32 ids of msrec, because TorchRec takes int64 ids."""


class TableLoad(StrictModel):
    """Embedding table, with its lookups per row of a batch.

    Attributes:
        rows, dim: size of the table.
        pooling: mean number of ids per row and feature; 1 for an id, the mean length of a list.
        features: number of features that look up this table, each with `pooling` ids.
        bags: mean number of bags of ids per row and feature, which have a pooled vector each.
        kind: `pooled` for an EmbeddingBagCollection, `sequence` for an EmbeddingCollection, which
            returns a vector for each id.
        weighted: whether each id comes with a weight.
        batch: rows of a step on one rank, if they differ from those of the other tables.
        frozen: whether the table is read only, without gradient and optimizer.
        module: dotted name of its collection in the model.
        min_partition: columns of a column shard; a multiple of 4 that divides `dim`.
        co_locate: label; tables with the same one are table-wise on the same rank.
        sharding: the only sharding type allowed; None allows all.
        kernel: the only compute kernel allowed; None allows all.
        zipf: exponent of the popularity of ids; None takes all ids to be looked up equally often.
        id_counts: numbers of most popular ids, rising, each with the share of lookups that they
            have together; counted in place of `zipf`.
        cache: policy of the cache. The training pipeline prefetches rows with `lru` only.
    """

    name: Annotated[str, Field(min_length=1), AfterValidator(module_name)]
    rows: Rows
    dim: VectorSize
    pooling: float = Field(1.0, gt=0, le=1e6)
    features: Width = 1
    bags: float = Field(1.0, gt=0)
    kind: Kind = "pooled"
    weighted: bool = False
    batch: int | None = Field(None, ge=1, le=1 << 24)
    precision: Precision = "fp32"
    frozen: bool = False
    module: str = "ebc"
    sharding: Sharding | None = None
    kernel: Kernel | None = None
    min_partition: VectorSize | None = None
    co_locate: str | None = Field(None, min_length=1)
    zipf: float | None = Field(None, gt=0, le=10)
    id_counts: tuple[tuple[int, float], ...] | None = None
    cache: CachePolicy = "lru"

    @model_validator(mode="after")
    def _check_partition(self) -> "TableLoad":
        if self.min_partition is not None and self.dim % self.min_partition:
            raise ValueError(f"min_partition must divide dim, {self.dim}; got {self.min_partition}")
        if self.co_locate is not None and self.sharding not in (None, "table_wise"):
            raise ValueError(f"a table with co_locate is table_wise; sharding is {self.sharding}")
        if self.id_counts is not None:
            self._check_counts(self.id_counts)
        return self

    def _check_counts(self, counts: Sequence[tuple[int, float]]) -> None:
        pairs = [(0, 0.0), *counts]
        is_rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(pairs))
        if not counts or not is_rising or pairs[-1][0] > self.rows or not 0 < pairs[-1][1] <= 1.001:
            raise ValueError(
                f"id_counts must be rising numbers of ids up to rows, {self.rows}, with rising "
                "shares up to 1"
            )

    @property
    def popularity(self) -> Popularity:
        """Popularity of the ids."""
        if self.id_counts is not None:
            return counted_popularity(self.rows, self.id_counts)
        if self.zipf is not None:
            return zipf_popularity(self.rows, self.zipf)
        return equal_popularity(self.rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return self.rows * self.row_bytes(self.dim)

    @property
    def column_width(self) -> int:
        """Columns of a column shard; `dim` if the table cannot be divided."""
        return self.min_partition or shard_columns(self.dim, MIN_PARTITION)

    def row_bytes(self, columns: int) -> int:
        """Returns the bytes of `columns` of a row."""
        return columns * VALUE_BYTES[self.precision] + ROW_BYTES.get(self.precision, 0)


def shard_columns(dim: int, least: int) -> int:
    """Returns the columns of a column shard by TorchRec's rule, `dim` if there is one shard only.

    It is the smallest multiple of 4 from `least` on that divides `dim`.
    """
    return next((n for n in range(least, dim) if n % 4 == 0 and dim % n == 0), dim)


TEXT_COLUMNS = ("name", "module", "co_locate")
"""Columns of a CSV file whose cells stay text, though they look like numbers."""


class _Count(BaseModel):
    count: Width


def read_tables_file(path: Path) -> list[TableLoad]:
    """Reads tables from YAML (a list, or `tables:` with one) or CSV with the same columns.

    An entry with `count: 50` makes 50 equal tables, numbered from 1.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a table is invalid or listed twice; names the file and the table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the list of tables {path} must exist; it does not.")
    entries = _csv_entries(path) if path.suffix == ".csv" else _yaml_entries(path)
    tables: dict[str, TableLoad] = {}
    for number, entry in enumerate(entries, start=1):
        name = entry.get("name", number) if isinstance(entry, dict) else number
        try:
            expanded = [TableLoad.model_validate(fields) for fields in _expanded(entry)]
        except ValidationError as error:
            raise ValueError(f"{path}: table {name}: {first_error(error)}.") from None
        for table in expanded:
            if table.name in tables:
                raise ValueError(
                    f"{path} must hold tables of different names; found twice: {table.name}."
                )
            tables[table.name] = table
    if not tables:
        raise ValueError(f"{path} must hold at least one table; found no table.")
    return list(tables.values())


def _expanded(entry: Any) -> list[Any]:
    """Returns the tables of an entry, `count` of them with numbered names."""
    if not isinstance(entry, dict) or "count" not in entry:
        return [entry]
    count = _Count.model_validate({"count": entry["count"]}).count
    fields = {key: value for key, value in entry.items() if key != "count"}
    name = fields.get("name", "")
    return [fields | {"name": f"{name}_{number}"} for number in range(1, count + 1)]


def _csv_entries(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a CSV file without their empty cells."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            rows = list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} must be CSV; {error}.") from None
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            heads = ", ".join(reader.fieldnames or ())
            raise ValueError(f"{path} must have the columns {heads} in each row; row {number} not.")
    return [{key.strip(): _cell(key, text) for key, text in r.items() if text} for r in rows]


def _cell(column: str, text: str) -> str | float:
    """Returns a cell as a number, where it is one; 1e9 is 1000000000."""
    try:
        return text.strip() if column.strip() in TEXT_COLUMNS else float(text)
    except ValueError:
        return text.strip()


def _yaml_entries(path: Path) -> list[Any]:
    tree = read_yaml(path)
    entries = tree.get("tables") if isinstance(tree, dict) else tree
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of tables, or `tables:` with one.")
    return entries
