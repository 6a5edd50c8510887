"""Item vectors of one source for a dataset: half-whitened principal components of unit length."""

import logging
import zlib
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
    """Vectors of one source in the order of a dataset's items.parquet.

    Shape:
        vectors: (num_items, D), float16, of length 1; zeros for an item without a vector.
        has: (num_items,), bool, whether the item has a vector.
    """

    name: str
    vectors: npt.NDArray[np.float16]
    has: npt.NDArray[np.bool_]


def load_item_vectors(
    dataset: AnyPath,
    store_folder: Path,
    source: str,
    dim: int,
    control: SourceControl | None = None,
    seed: int = 0,
) -> ItemVectors:
    """Reads the vectors that a source has for the items of a dataset, found by their keys.

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

    Raises:
        FileNotFoundError: the store does not have the source.
        ValueError: the store is damaged, or its keys are of another type than those of the dataset.
    """
    store = KnowledgeStore.open(item_source_folder(store_folder, source))
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
    vectors = np.zeros((len(rows), dim), np.float16)
    random = rng.standard_normal((len(store), dim), np.float32) if control == "random" else None
    positions = np.flatnonzero(has)
    for start in range(0, len(positions), CHUNK_ROWS):
        at = positions[start : start + CHUNK_ROWS]
        vectors[at] = (
            item_units(store, projection, rows[at], dim)
            if random is None
            else unit_vectors(random[rows[at]])
        )
    return ItemVectors(source, vectors, has)


def item_units(
    store: KnowledgeStore, projection: Projection, rows: npt.NDArray[np.int64], dim: int
) -> Floats:
    """Returns projected vectors of some rows of a source, of length 1: (n, dim), float32."""
    units = unit_vectors(projection(store.vectors[rows].astype(np.float32)))
    return np.pad(units, ((0, 0), (0, dim - units.shape[1])))


def item_projection(store: KnowledgeStore, dim: int, *, save: bool = True) -> Projection:
    """Returns the projection of a source: the saved one, or one that is fitted, and saved."""
    file = store.path / f"projection-{dim}.npz"
    if file.is_file():
        return _load(file)
    if not save:
        return _fit(store, dim)
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
