"""Differences between two sources of item vectors: which items have other neighbours by each."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from msrec.data.llm.item_vectors import item_projection, item_units
from msrec.data.llm.store import KnowledgeStore

BATCH_ITEMS = 128
"""Items whose cosines with all others are computed together."""


@dataclass(frozen=True)
class SourceOverlap:
    """Nearest items by two sources, for a sample of m items.

    Shape:
        keys: (m,), keys of the sampled items.
        all_keys: (n,), keys of all items that both sources have.
        shared: (m,), share of the k nearest items that are the same by both, in [0, 1].
        nearest: for each source (m, k), int64, positions in `all_keys`, the nearest first.
        order: (m,), positions in the sample, those with the smallest share first; among equals,
            those with the nearest neighbours, of which the sources are surest.
    """

    keys: npt.NDArray[Any]
    all_keys: npt.NDArray[Any]
    shared: npt.NDArray[np.float64]
    nearest: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    order: npt.NDArray[np.int64]

    def nearest_keys(self, position: int, count: int) -> list[list[Any]]:
        """Returns the keys of the nearest items of a sampled one, by each source."""
        return [self.all_keys[rows[position, :count]].tolist() for rows in self.nearest]


def source_overlap(
    first: KnowledgeStore,
    second: KnowledgeStore,
    dim: int,
    count: int = 10,
    sample: int = 2_000,
    seed: int = 0,
) -> SourceOverlap:
    """Compares the `count` nearest items by two sources, for a random sample of the items."""
    rows = second.rows(first.keys)
    both = np.flatnonzero(rows >= 0)
    if len(both) <= count:
        raise ValueError(
            f"{first.path} and {second.path} must share more than {count} items; they share "
            f"{len(both)}."
        )
    size = min(sample, len(both))
    sampled = np.sort(np.random.default_rng(seed).choice(len(both), size, replace=False))
    nearest, cosines = zip(
        *(
            _nearest(
                item_units(store, item_projection(store, dim, save=False), at, dim), sampled, count
            )
            for store, at in ((first, both), (second, rows[both]))
        ),
        strict=True,
    )
    shared = (nearest[0][:, :, None] == nearest[1][:, None]).any(axis=2).mean(axis=1)
    order = np.lexsort((-(cosines[0] + cosines[1]), shared))
    keys = first.keys[both]
    return SourceOverlap(keys[sampled], keys, shared, (nearest[0], nearest[1]), order)


def _nearest(
    units: npt.NDArray[np.float32], sampled: npt.NDArray[np.int64], count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Returns positions of the nearest others (m, count), and the mean of their cosines (m,)."""
    nearest, means = [], []
    for start in range(0, len(sampled), BATCH_ITEMS):
        own = sampled[start : start + BATCH_ITEMS]
        cosines = units[own] @ units.T
        cosines[np.arange(len(own)), own] = -np.inf
        top = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(cosines, top, axis=1)
        nearest.append(np.take_along_axis(top, np.argsort(-values, axis=1), axis=1))
        means.append(values.mean(axis=1))
    return np.concatenate(nearest), np.concatenate(means)
