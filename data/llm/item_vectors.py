"""Item vectors of one source for a dataset: half-whitened principal components of unit length."""

import logging
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from msrec.data.io.atomic_files import atomic_path, locked
from msrec.data.io.parquet_files import read_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.llm.compression import (
    CHUNK_ROWS,
    Floats,
    Projection,
    fit_half_whitening,
    float_chunks,
)
from msrec.data.llm.neighbours import unit_vectors
from msrec.data.llm.store import KnowledgeStore, item_source_folder

log = logging.getLogger(__name__)

SourceControl = Literal["shuffled", "random"]


@dataclass(frozen=True)
class ItemVectors:
    """Vectors of one source for the items of a dataset, projected when they are read.

    Vectors have length 1; an item without one has zeros. They are projected in fixed chunks of
    `CHUNK_ROWS` items, so that a vector has the same bits whichever others are read with it: the
    last bit of a matrix product may depend on its number of rows.

    Attributes:
        name: of the source.
        dim: numbers of a vector.
        store: the source's folder, mapped into memory.
        projection: of the vectors of the store.
        store_rows: (num_items,), integers, the row of each item in the store; -1 without a vector.
        random: (rows of the store, dim), float32, replaces its vectors; None without this control.
    """

    name: str
    dim: int
    store: KnowledgeStore
    projection: Projection
    store_rows: npt.NDArray[np.signedinteger]
    random: Floats | None = None

    def __len__(self) -> int:
        """Number of items."""
        return len(self.store_rows)

    @property
    def has(self) -> npt.NDArray[np.bool_]:
        """Whether each item has a vector, (num_items,)."""
        return self.store_rows >= 0

    def chunks(
        self, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[slice, npt.NDArray[np.float16]]]:
        """Yields slices of the items from `first` to before `last` and their vectors (n, dim)."""
        last = len(self) if last is None else last
        for start in range(first - first % CHUNK_ROWS, last, CHUNK_ROWS):
            at = slice(max(first, start), min(last, start + CHUNK_ROWS))
            yield at, self._chunk(start)[at.start - start : at.stop - start]

    def rows(self, items: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        """Returns the vectors of items (n,), indices into items.parquet: (n, dim).

        A chunk is projected as a whole for each item in it. Read many items at once.
        """
        vectors = np.empty((len(items), self.dim), np.float16)
        starts = items - items % CHUNK_ROWS
        for start in np.unique(starts):
            is_in = starts == start
            vectors[is_in] = self._chunk(start)[items[is_in] - start]
        return vectors

    def _chunk(self, start: int) -> npt.NDArray[np.float16]:
        rows = self.store_rows[start : start + CHUNK_ROWS]
        vectors = np.zeros((len(rows), self.dim), np.float16)
        has = rows >= 0
        if has.any():
            vectors[has] = (
                item_units(self.store, self.projection, rows[has], self.dim)
                if self.random is None
                else unit_vectors(self.random[rows[has]])
            )
        return vectors


def load_item_vectors(
    dataset: AnyPath,
    store_folder: AnyPath,
    source: str,
    dim: int,
    control: SourceControl | None = None,
    seed: int = 0,
    expected: Mapping[str, Any] | None = None,
) -> ItemVectors:
    """Finds the vectors that a source has for the items of a dataset, by their keys.

    The projection is fitted once to all items of the store, and saved in the source's folder. It
    never changes after that, so that a trained run can score other datasets, and items that came
    later. A source of fewer components than `dim` leaves the last columns at zero.

    Args:
        dataset: the dataset to train on or to score.
        store_folder: the knowledge store.
        source: a name of `llm.sources`.
        dim: number of components.
        control: replaces the vectors, to test whether their meaning matters: "shuffled" gives each
            item the vector of another item of the store, "random" normal random numbers. An item
            without a vector stays without one.
        seed: of the control.
        expected: settings that the source must have been made with.

    Raises:
        FileNotFoundError: the store does not have the source.
        ValueError: the store is damaged, was made with other settings, or its keys are of another
            type than those of the dataset.
    """
    store = KnowledgeStore.open(item_source_folder(store_folder, source))
    store.check(expected or {})
    projection = item_projection(store, dim)
    has_vector = has_vectors(store)
    keys = read_parquet(dataset / "items.parquet", ["item_key"])["item_key"]
    rows = store.rows(keys.to_numpy(zero_copy_only=False))
    has = (rows >= 0) & has_vector[rows]
    if not has.all():
        log.warning("%s: %d of %d items have no vector", source, (~has).sum(), len(has))
    # Drawn for the items of the store, so that an item has the same one in every dataset.
    rng = np.random.default_rng([seed, zlib.crc32(source.encode())])
    if control == "shuffled":
        permuted = np.arange(len(store))
        permuted[has_vector] = rng.permutation(permuted[has_vector])
        rows = permuted[rows]
    random = rng.standard_normal((len(store), dim), np.float32) if control == "random" else None
    # Every rank keeps a row for each item, so that its type is the smallest that has room.
    rows = np.where(has, rows, -1).astype(np.min_scalar_type(-len(store)))
    return ItemVectors(source, dim, store, projection, rows, random)


def item_units(
    store: KnowledgeStore,
    projection: Projection,
    rows: npt.NDArray[np.signedinteger],
    dim: int,
) -> Floats:
    """Returns projected vectors of some rows of a source, of length 1: (n, dim), float32."""
    units = unit_vectors(projection(store.vectors[rows].astype(np.float32)))
    return np.pad(units, ((0, 0), (0, dim - units.shape[1])))


def item_projection(store: KnowledgeStore, dim: int, *, save: bool = True) -> Projection:
    """Returns the projection of a source: the saved one, or one that is fitted, and saved.

    Raises:
        FileNotFoundError: the source is remote and has none, see `KnowledgeStore.require_fitted`.
    """
    file = store.path / f"projection-{dim}.npz"
    if file.is_file():
        return _load(file)
    if not save:
        return _fit(store, dim)
    store.require_fitted(file)
    with locked(store.path / ".lock"):  # ranks come here together
        if not file.is_file():
            with atomic_path(file) as scratch, scratch.open("wb") as opened:
                np.savez(opened, allow_pickle=False, **vars(_fit(store, dim)))
    return _load(file)


def _fit(store: KnowledgeStore, dim: int) -> Projection:
    has_vector = has_vectors(store)
    vectors = store.vectors if has_vector.all() else store.vectors[has_vector]
    return fit_half_whitening(vectors, dim)


def _load(file: Path) -> Projection:
    with np.load(file, allow_pickle=False) as arrays:
        values: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    return Projection(**values | {"explained": float(values["explained"])})


def has_vectors(store: KnowledgeStore) -> npt.NDArray[np.bool_]:
    """Returns whether each vector has a value besides 0; a text without known terms has none."""
    chunks = [rows.any(axis=1) for _, rows in float_chunks(store.vectors)]
    return np.concatenate(chunks)
