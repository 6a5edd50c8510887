"""Options of the embedding tables of a run: optimizer and sharding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch

TableOptimizer = Literal["rowwise_adagrad", "adam"]
TableSharding = Literal[
    "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid"
]
Comms = Literal["fp32", "fp16"]
"""Type in which ranks send each other vectors; with fp16 gradients are sent in bfloat16."""
COLUMN_SHARDINGS: tuple[TableSharding, ...] = ("column_wise", "table_column_wise", "grid")
"""Shardings that divide the vectors of a table."""
ROW_SHARDINGS: tuple[TableSharding, ...] = ("row_wise", "table_row_wise", "grid")
"""Shardings that divide the rows of a table."""
MIN_COLUMNS = 128
"""Smallest number of columns of a shard by default, as in TorchRec."""
TORCHREC_NAMES: dict[str, str] = {name: name for name in get_args(TableSharding)}
TORCHREC_NAMES["grid"] = "grid_shard"
"""Name of each sharding in TorchRec and in plan files."""


@dataclass(frozen=True)
class TableOptions:
    """Sharding and training of the embedding tables.

    Args:
        optimizer: "rowwise_adagrad" is fused into the backward pass; "adam" on CPU replicates every
            table and keeps a full dense gradient of it, so it is for small tables.
        lr: learning rate of the tables.
        row_wise_from: rows from which a table is split by rows over all ranks.
        sharding: table -> type, which overrides `row_wise_from`.
        min_columns: smallest number of columns of a shard, for tables divided by columns.
        group_ranks: number of consecutive ranks that share one copy of the tables; None is all.
        eps: of RowWiseAdagrad, explicit because the defaults of FBGEMM and torch differ.
        comms: type in which ranks send each other vectors.
    """

    optimizer: TableOptimizer
    lr: float
    row_wise_from: int
    sharding: Mapping[str, TableSharding]
    min_columns: int = MIN_COLUMNS
    group_ranks: int | None = None
    eps: float = 1e-8
    comms: Comms = "fp32"

    def is_dense(self, device: torch.device) -> bool:
        """Whether the tables are replicated and trained by a dense optimizer."""
        return self.optimizer == "adam" and device.type == "cpu"

    def sharding_of(self, table: str, rows: int, world_size: int) -> TableSharding:
        """Returns the sharding of a table with a fused optimizer: by its name, else by its size."""
        # One rank has every row: sorting ids by the rank of their row would cost a third of a step.
        is_split = rows >= self.row_wise_from and world_size > 1
        return self.sharding.get(table, "row_wise" if is_split else "table_wise")
