"""Item vectors and histories in an export, for models with interest blocks.

The files::

    item-sources/NAME.npy       (num_items, D), float16, vectors of a source
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
from msrec.data.llm.item_vectors import ItemVectors
from msrec.data.llm.store import item_source_folder
from msrec.launch.serving.export_folder import InterestFiles
from msrec.launch.serving.request_histories import Longs, RequestHistories

HISTORY_ARRAYS = ("starts", "items", "scenarios", "labels")


def write_interest(
    folder: Path, sources: Sequence[ItemVectors], index: HistoryIndex, max_len: int
) -> InterestFiles:
    """Writes the item vectors of each source, and the `max_len` newest events of each user."""
    for source in sources:
        path = _vector_file(folder, source.name)
        path.parent.mkdir(exist_ok=True)
        shape = (len(source), source.dim)
        vectors = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        for at, values in source.chunks():
            vectors[at] = values
        vectors.flush()
    arrays = _newest_events(index, max_len)
    (folder / HISTORIES).mkdir()
    for name, array in arrays.items():
        np.save(folder / HISTORIES / f"{name}.npy", array)
    return InterestFiles(
        sources={source.name: source.dim for source in sources},
        protocol=index.manifest.protocol,
        events=index.manifest.events,
        max_len=max_len,
        num_items=len(sources[0]),
        num_events=len(arrays["items"]),
        vector_bytes=sum(2 * source.dim * len(source) for source in sources),
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


def _vector_file(folder: Path, source: str) -> Path:
    path = item_source_folder(folder, source)
    return path.with_name(f"{path.name}.npy")


class UserHistories:
    """Histories of all users of an export, mapped into memory."""

    def __init__(self, folder: Path, interest: InterestFiles) -> None:
        self._starts, self._items, self._scenarios, self._labels = (
            np.asarray(np.load(folder / HISTORIES / f"{name}.npy", mmap_mode="r"))
            for name in HISTORY_ARRAYS
        )
        self.max_len, self.events = interest.max_len, interest.events

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


class ItemSources:
    """Item vectors of an export by source, mapped into memory."""

    def __init__(self, folder: Path, interest: InterestFiles) -> None:
        self._vectors = [
            np.asarray(np.load(_vector_file(folder, source), mmap_mode="r"))
            for source in interest.sources
        ]

    def gather(self, items: Longs) -> Sequence[Tensor]:
        """Returns, per source, the vectors of (M,) items and a row of zeros: (M + 1, D), float."""
        tables = []
        for vectors in self._vectors:
            table = np.zeros((len(items) + 1, vectors.shape[1]), np.float32)
            table[:-1] = vectors[items]
            tables.append(torch.from_numpy(table))
        return tables
