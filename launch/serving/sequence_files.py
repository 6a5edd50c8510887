"""Ordered histories and tables by item in an export, for models that read histories.

The files::

    item-tables/NAME.npy        (num_items, bytes of a row), uint8, as `quantize_rows` makes them
    histories/starts.npy        (num_users + 1,), int64, first event of each user
    histories/items.npy         (N,), int32, index into items.parquet, oldest event first
    histories/scenarios.npy     (N,), int32
    histories/labels.npy        (N,), uint8
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from msrec.data.features.columns import slice_positions
from msrec.data.histories.index import HISTORIES, HistoryIndex
from msrec.launch.serving.export_folder import ITEM_TABLES, ExportTable, SequenceFiles
from msrec.launch.serving.quantized_tables import dequantize_rows, map_table
from msrec.launch.serving.request_histories import Longs, RequestHistories

HISTORY_ARRAYS = ("starts", "items", "scenarios", "labels")


def write_histories(
    folder: Path, index: HistoryIndex, max_len: int, tables: Sequence[ExportTable]
) -> SequenceFiles:
    """Writes the `max_len` newest events of each user; `tables` are the tables by item."""
    arrays = _newest_events(index, max_len)
    (folder / HISTORIES).mkdir()
    for name, array in arrays.items():
        np.save(folder / HISTORIES / f"{name}.npy", array)
    return SequenceFiles(
        tables=list(tables),
        protocol=index.manifest.protocol,
        events=index.manifest.events,
        max_len=max_len,
        num_events=len(arrays["items"]),
        history_bytes=sum(array.nbytes for array in arrays.values()),
    )


def _newest_events(index: HistoryIndex, max_len: int) -> dict[str, npt.NDArray[np.generic]]:
    lengths = np.minimum(np.diff(index.starts), max_len)
    positions = slice_positions(index.starts[1:] - lengths, lengths)
    events = {"items": index.items, "scenarios": index.scenarios, "labels": index.labels}
    return {
        "starts": np.concatenate([[0], np.cumsum(lengths)]),
        **{name: np.asarray(values)[positions] for name, values in events.items()},
    }


class UserHistories:
    """Histories of all users of an export, mapped into memory."""

    def __init__(self, folder: Path, sequence: SequenceFiles) -> None:
        self._starts, self._items, self._scenarios, self._labels = (
            np.asarray(np.load(folder / HISTORIES / f"{name}.npy", mmap_mode="r"))
            for name in HISTORY_ARRAYS
        )
        self.max_len, self.events = sequence.max_len, sequence.events

    def of_rows(self, user: Longs, item: Longs) -> RequestHistories:
        """Returns the histories of rows.

        Args:
            user: (n,), indices into users.parquet; -1 for unknown users, who have no history.
            item: (n,), indices into items.parquet; -1 for unknown items.
        """
        users, bag = np.unique(user, return_inverse=True)
        first = self._starts[np.maximum(users, 0)]
        lengths = np.where(users < 0, 0, self._starts[users + 1] - first)
        positions = slice_positions(first, lengths)
        histories = RequestHistories.empty(len(users), self.max_len, item, bag)
        is_event = np.arange(self.max_len) >= self.max_len - lengths[:, None]
        histories.items[is_event] = self._items[positions]
        histories.scenario[is_event] = self._scenarios[positions]
        histories.label[is_event] = self._labels[positions]
        return histories


class ItemTables:
    """Tables by item of an export, mapped into memory: frozen vectors, then learned ones."""

    def __init__(self, folder: Path, tables: Sequence[ExportTable]) -> None:
        self._tables = [(table, map_table(folder / ITEM_TABLES, table)) for table in tables]

    def gather(self, items: Longs) -> Sequence[Tensor]:
        """Returns, per table, the vectors of (M,) items and a row of zeros: (M + 1, D), float."""
        gathered = []
        for table, rows in self._tables:
            vectors = np.zeros((len(items) + 1, table.dim), np.float32)
            vectors[:-1] = dequantize_rows(rows[items], table.kind)
            gathered.append(torch.from_numpy(vectors))
        return gathered
