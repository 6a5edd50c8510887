"""Joins a knowledge store to a dataset: user or item index -> vector, scenario -> vector."""

import logging
import zlib
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from msrec.data.io.parquet_files import read_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.llm.store import KnowledgeStore
from msrec.data.schema import Schema

log = logging.getLogger(__name__)


Control = Literal["none", "shuffled", "random", "learned"]


class EntityKnowledge:
    """A level of a store, addressed by the dataset's index of users or items.

    Args:
        dataset: the dataset folder; its users.parquet (items.parquet) has the keys.
        level: user or item.
        store: the opened level.
        missing: for those without a vector "mean" (the mean vector, has 0) or "error".
        control: what stands in place of the vectors, to see whether their meaning matters:
            "shuffled" gives each user with a vector that of another; "random" and "learned" give
            normal numbers (with "learned" the model replaces them by vectors it learns).
        seed: of the control.

    Raises:
        ValueError: `missing` is "error" and some user has no vector.
    """

    def __init__(
        self,
        dataset: AnyPath,
        level: Literal["user", "item"],
        store: KnowledgeStore,
        missing: Literal["mean", "error"] = "mean",
        control: Control = "none",
        seed: int = 0,
    ) -> None:
        key = f"{level}_key"
        names = read_parquet(dataset / f"{level}s.parquet", [key])[key].to_numpy(
            zero_copy_only=False
        )
        self._rows = store.rows(names)
        has = self._rows >= 0
        self.num_missing = int((~has).sum())
        if self.num_missing and missing == "error":
            first = names[np.argmax(~has)]
            raise ValueError(
                f"every {level} must have a vector (llm.missing=error); {self.num_missing} of "
                f"{len(names)} have none, the first is {first}. Run `msrec encode` again."
            )
        if self.num_missing:
            log.warning("%d of %d %ss have no vector", self.num_missing, len(names), level)
        self._store = store
        self._drawn: torch.Tensor | None = None
        self.mean, self.std = store.mean, store.std
        self.dim = int(store.vectors.shape[1])
        rng = np.random.default_rng([seed, zlib.crc32(level.encode())])
        if control == "shuffled":
            self._rows[has] = rng.permutation(self._rows[has])
        elif control != "none":
            drawn = rng.standard_normal((len(names), self.dim), dtype=np.float32)
            self._drawn = torch.from_numpy(drawn)
            self.mean, self.std = np.zeros_like(self.mean), np.ones_like(self.std)

    @property
    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (H,), float32, of what `gather` gives."""
        return torch.from_numpy(self.mean), torch.from_numpy(self.std)

    def gather(self, ids: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of some users.

        Shape:
            ids: (U,), int64, indices into users.parquet; -1 for one that is not there.
            returns: vectors (U, H), as `take` gives them, and has (U,), float32; the mean vector
                and 0 where the store has none.
        """
        rows = np.where(ids < 0, -1, self._rows[ids])
        present = torch.from_numpy(rows >= 0)
        if self._drawn is not None:
            vectors = self._drawn.index_select(0, torch.from_numpy(np.maximum(ids, 0)))
        else:
            vectors = take(self._store, np.maximum(rows, 0))
        vectors[~present] = torch.from_numpy(self.mean).to(vectors.dtype)
        return vectors, present.float()


def take(store: KnowledgeStore, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """Vectors of some rows, copied out of the map.

    Shape:
        rows: (n,), int64, in [0, N).
        returns: (n, H), of the store's type, where that is int8 float32: the model converts, so
            that half as many bytes travel to it.
    """
    # torch gathers rows of a map several times as fast as NumPy.
    at = torch.from_numpy(rows)
    found = torch.from_numpy(store.vectors).index_select(0, at)
    if store.scales is None:
        return found
    # Converted first and scaled in place: a product of both types takes a quarter longer.
    return found.float().mul_(torch.from_numpy(store.scales).index_select(0, at).unsqueeze(1))


def scenario_vectors(store: KnowledgeStore, schema: Schema) -> npt.NDArray[np.float32]:
    """The scenario level in the schema's order, standardised over the scenarios.

    Shape:
        returns: (S, H), float32; zero mean and unit variance per dimension where S > 1.

    Raises:
        ValueError: a scenario of the schema has no vector.
    """
    names = np.array([scenario.name for scenario in schema.scenarios])
    rows = store.rows(names)
    if (rows < 0).any():
        raise ValueError(
            f"every scenario must have a vector; {names[rows < 0][0]!r} has none in the store. Run "
            "`msrec encode` again."
        )
    vectors: npt.NDArray[np.float32] = take(store, rows).float().numpy()
    if len(vectors) == 1:
        return vectors
    spread = vectors.std(axis=0)
    standardised = (vectors - vectors.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return np.asarray(standardised, dtype=np.float32)
