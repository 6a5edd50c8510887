"""Initial values of a sharded model's tables, written to the local shards by chunks of rows."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingPlan

from msrec.model.distributed.tables import frozen_tables
from msrec.model.embeddings import fill_rows

RowChunks = Callable[[int, int], Iterable[tuple[slice, npt.NDArray[np.floating]]]]
"""Yields slices of the rows from one to before another, and their values, (n, dim)."""
FILL_ROWS = 1 << 16
"""Rows of a table that are computed at once, in host memory."""


def init_tables(dmp: DistributedModelParallel, plan: ShardingPlan, std: float, seed: int) -> None:
    """Fills each local shard of each trained table by global row index, see `fill_rows`."""
    frozen = frozen_tables(dmp)
    for table, weights, (first_row, first_column), dim in _local_shards(dmp, plan):
        if table in frozen:
            continue
        columns = slice(first_column, first_column + weights.shape[1])
        for at, rows in enumerate(torch.split(weights, FILL_ROWS)):
            # All columns are drawn for a part of them, so that values do not depend on the plan.
            values = torch.empty(len(rows), dim)
            fill_rows(values, table, first_row + at * FILL_ROWS, std, seed)
            rows.copy_(values[:, columns])


def fill_frozen(
    dmp: DistributedModelParallel, plan: ShardingPlan, vectors: Mapping[str, RowChunks]
) -> None:
    """Fills the local shards of frozen tables from table -> its vectors, read by chunks of rows."""
    for table, weights, (first_row, first_column), _ in _local_shards(dmp, plan):
        if table not in vectors:
            continue
        columns = slice(first_column, first_column + weights.shape[1])
        for at, rows in vectors[table](first_row, first_row + len(weights)):
            local = slice(at.start - first_row, at.stop - first_row)
            weights[local] = torch.from_numpy(rows)[:, columns].to(weights)


def fill_projected(
    dmp: DistributedModelParallel,
    plan: ShardingPlan,
    table: str,
    rows: torch.Tensor,
    vectors: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.floating]],
    projection: torch.Tensor,
) -> None:
    """Writes `vectors @ projection` to some rows of a table, in the local shards that have them.

    Shape:
        rows: (n,), int64, distinct rows of the table.
        vectors: returns the vectors (m, V) for m positions in `rows`.
        projection: (V, dim), float32.
    """
    for name, weights, (first_row, first_column), _ in _local_shards(dmp, plan):
        if name != table:
            continue
        columns = slice(first_column, first_column + weights.shape[1])
        local = (rows >= first_row) & (rows < first_row + len(weights))
        for at in torch.split(torch.nonzero(local).squeeze(1), FILL_ROWS):
            index = (rows[at] - first_row).to(weights.device)
            values = torch.from_numpy(vectors(at.numpy())).float() @ projection[:, columns]
            weights[index] = values.to(weights)


def _local_shards(
    dmp: DistributedModelParallel, plan: ShardingPlan
) -> Iterator[tuple[str, torch.Tensor, tuple[int, int], int]]:
    """Yields table, weights, first row and column, and dim of the table, of each local shard.

    The weights may be written.
    """
    state = dmp.state_dict()
    for path, module_plan in plan.plan.items():
        for table in module_plan:
            tensor = state[f"{path}.embedding_bags.{table}.weight"]
            dim = tensor.size(1)
            if hasattr(tensor, "local_shards"):
                for shard in tensor.local_shards():
                    first = tuple(shard.metadata.shard_offsets)
                    yield table, shard.tensor.detach(), first, dim
            else:
                yield table, tensor.detach(), (0, 0), dim
