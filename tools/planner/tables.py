"""Embedding tables to plan for, and how to read a list of them from a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
import torch
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from msrec.data.io.names import module_name
from msrec.data.io.validation import StrictModel, VectorSize, Width, first_error
from msrec.data.io.yaml_files import read_yaml
from msrec.data.schema import TableRows
from msrec.model.distributed.table_options import TableOptimizer, TableOptions
from msrec.model.distributed.tables import fuse_optimizer

Precision = Literal["fp32", "fp16", "bf16"]
Sharding = Literal["table_wise", "row_wise", "table_row_wise", "column_wise", "data_parallel"]
RUN_SHARDINGS: tuple[Sharding, ...] = ("table_wise", "row_wise")
"""Sharding types that a plan for a run chooses from; others only if they are asked for."""
Kernel = Literal["fused", "fused_uvm", "fused_uvm_caching"]
"""Table on the accelerator, in host memory, or in host memory with a cache on the accelerator."""
VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "bf16": DataType.BF16}


class TableLoad(StrictModel):
    """Embedding table, with its lookups per row of a batch.

    Attributes:
        rows, dim: size of the table.
        pooling: mean number of ids per row and feature; 1 for an id, the mean length of a list.
        features: number of features that look up this table, each with `pooling` ids.
        bags: mean number of bags of ids per row and feature, which have a pooled vector each.
        frozen: whether the table is read only, without gradient and optimizer.
        module: dotted name of its collection in the model.
        sharding: the only sharding type allowed; None allows all.
        kernel: the only compute kernel allowed; None allows all.
    """

    name: Annotated[str, Field(min_length=1), AfterValidator(module_name)]
    rows: TableRows
    dim: VectorSize
    pooling: float = Field(1.0, gt=0, le=1e6)
    features: Width = 1
    bags: float = Field(1.0, gt=0)
    precision: Precision = "fp32"
    frozen: bool = False
    module: str = "ebc"
    sharding: Sharding | None = None
    kernel: Kernel | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return self.rows * self.dim * VALUE_BYTES[self.precision]


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


def meta_collection(
    tables: Sequence[TableLoad], optimizer: TableOptimizer
) -> EmbeddingBagCollection:
    """Returns the tables as a TorchRec module on the meta device, which takes no memory.

    Their fused optimizer is attached, because TorchRec's estimators count its state.
    """
    collection = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=table.name,
                embedding_dim=table.dim,
                num_embeddings=table.rows,
                feature_names=[f"{table.name}.{number}" for number in range(table.features)],
                pooling=PoolingType.SUM,
                data_type=_DATA_TYPES[table.precision],
            )
            for table in tables
        ],
        device=torch.device("meta"),
    )
    spec = TableOptions(optimizer, lr=0.1, row_wise_from=1, sharding={})
    fuse_optimizer(collection, spec, torch.device("cuda"))
    return collection
