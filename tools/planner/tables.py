"""Tables to plan for: from a run's config, or from a list of somebody else's model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from msrec.data.io.validation import first_error, read_yaml
from msrec.model.distributed.sharding import TableOptions, fuse_optimizer

Precision = Literal["fp32", "fp16", "bf16"]
Sharding = Literal["table_wise", "row_wise", "table_row_wise", "column_wise", "data_parallel"]
Kernel = Literal["fused", "fused_uvm", "fused_uvm_caching"]
"""On the accelerator, in host memory, in host memory with a cache on the accelerator."""
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "bf16": DataType.BF16}


class TableLoad(BaseModel):
    """One embedding table and what a row of the batch asks of it.

    Attributes:
        rows, dim: of the table.
        pooling: ids per row and feature, a mean; 1 for an id, the mean length of a list.
        features: how many features look the table up, each with `pooling` ids.
        sharding: the only way it may be placed; None leaves that open.
        kernel: the only place it may live in; None leaves that open.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    rows: int = Field(gt=0)
    dim: int = Field(gt=0)
    pooling: float = Field(1.0, gt=0)
    features: int = Field(1, ge=1)
    precision: Precision = "fp32"
    sharding: Sharding | None = None
    kernel: Kernel | None = None

    @property
    def num_bytes(self) -> int:
        """Of the weights."""
        return self.rows * self.dim * BYTES[self.precision]

    @property
    def lookups(self) -> float:
        """Ids per row of the batch."""
        return self.pooling * self.features


class _Count(BaseModel):
    count: int = Field(ge=1)


def read_tables_file(path: Path) -> list[TableLoad]:
    """Tables from YAML (a list, or `tables:` with one) or CSV with the same columns.

    An entry with `count: 50` is 50 tables that are alike, numbered from 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a table is wrong or there twice; names the file and the table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the list of tables {path} must exist; it does not.")
    entries = _csv_entries(path) if path.suffix == ".csv" else _yaml_entries(path)
    tables: list[TableLoad] = []
    for number, entry in enumerate(entries, start=1):
        name = entry.get("name", number) if isinstance(entry, dict) else number
        try:
            tables += [TableLoad.model_validate(each) for each in _alike(entry)]
        except ValidationError as error:
            raise ValueError(f"{path}: table {name}: {first_error(error)}.") from None
    names = [table.name for table in tables]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not tables:
        found = f"found twice: {twice[0]}" if twice else "found no table"
        raise ValueError(f"{path} must hold tables of different names; {found}.")
    return tables


def _alike(entry: Any) -> list[Any]:
    """The tables of an entry, `count` of them that differ in their name alone."""
    if not isinstance(entry, dict) or "count" not in entry:
        return [entry]
    count = _Count.model_validate({"count": entry["count"]}).count
    one = {key: value for key, value in entry.items() if key != "count"}
    return [one | {"name": f"{one.get('name', '')}_{number}"} for number in range(1, count + 1)]


def _csv_entries(path: Path) -> list[dict[str, Any]]:
    try:
        frame = pl.read_csv(path)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} must be CSV; {str(error).splitlines()[0]}.") from None
    return [{k: v for k, v in row.items() if v is not None} for row in frame.to_dicts()]


def _yaml_entries(path: Path) -> list[Any]:
    tree = read_yaml(path)
    entries = tree.get("tables") if isinstance(tree, dict) else tree
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of tables, or `tables:` with one.")
    return entries


def meta_collection(tables: Sequence[TableLoad], optimizer: str) -> EmbeddingBagCollection:
    """The tables without their memory, with the optimizer that the estimators count."""
    collection = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=table.name,
                embedding_dim=table.dim,
                num_embeddings=table.rows,
                feature_names=[f"{table.name}.{number}" for number in range(table.features)],
                pooling=PoolingType.SUM,
                data_type=_TYPES[table.precision],
            )
            for table in tables
        ],
        device=torch.device("meta"),
    )
    spec = TableOptions(optimizer, lr=0.1, row_wise_from=1, sharding={})  # type: ignore[arg-type]
    fuse_optimizer(collection, spec, torch.device("cuda"))
    return collection
