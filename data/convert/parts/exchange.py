"""Files that carry rows from parts to shares: one file for each part, one batch for each share."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def write_exchange(path: Path, table: pa.Table, share: npt.NDArray[np.integer], count: int) -> None:
    """Writes the rows of each share, in their order, as a batch of an Arrow file.

    Args:
        path: the file.
        table: N rows.
        share: (N,), the share of each row, in [0, count).
        count: number of shares.
    """
    order = np.argsort(share, kind="stable")
    ends = np.searchsorted(share[order], np.arange(count), side="right")
    rows = table.take(order)
    starts = np.concatenate([[0], ends[:-1]])
    write_batches(path, [rows.slice(a, b - a) for a, b in zip(starts, ends, strict=True)])


def write_batches(path: Path, tables: Sequence[pa.Table]) -> None:
    """Writes each table as a batch of an Arrow file."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(str(path), tables[0].schema, options=options) as file:
        for table in tables:
            batches = table.combine_chunks().to_batches()
            file.write_batch(batches[0] if batches else _empty(table.schema))


def read_batches(paths: Iterable[Path], share: int) -> Iterator[pa.Table]:
    """Yields the rows of a share, file by file."""
    for path in paths:
        with pa.memory_map(str(path)) as source:
            yield pa.Table.from_batches([pa.ipc.open_file(source).get_batch(share)])


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema)
