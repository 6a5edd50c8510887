"""Joins a knowledge store to a dataset: user index -> vector, scenario -> vector."""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from msrec.data.llm.store import KnowledgeStore
from msrec.data.schema import Schema

log = logging.getLogger(__name__)


class UserKnowledge:
    """The user level of a store, addressed by the dataset's user index.

    Args:
        dataset: the dataset folder; its users.parquet names the users.
        store: the opened user level.
        missing: what to do for users without a vector: "mean" (the mean vector, has_knowledge 0) or
            "error".

    Raises:
        ValueError: `missing` is "error" and some user has no vector.
    """

    def __init__(
        self, dataset: Path, store: KnowledgeStore, missing: Literal["mean", "error"] = "mean"
    ) -> None:
        keys = pq.read_table(dataset / "users.parquet", columns=["user_key"])["user_key"]
        names = keys.to_numpy(zero_copy_only=False)
        self._rows = store.rows(names)
        self.num_missing = int((self._rows < 0).sum())
        if self.num_missing and missing == "error":
            first = names[np.argmax(self._rows < 0)]
            raise ValueError(
                f"every user must have a vector (llm.missing=error); {self.num_missing} of "
                f"{len(names)} have none, the first is {first}. Run `msrec encode` again."
            )
        if self.num_missing:
            log.warning("%d of %d users have no vector", self.num_missing, len(names))
        self._store = store
        self.mean, self.std = store.mean, store.std
        self.dim = int(store.vectors.shape[1])

    def gather(self, users: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of some users.

        Shape:
            users: (U,), int64, indices into users.parquet.
            returns: vectors (U, H) and has_knowledge (U,), float32; the mean vector and 0 where the
                store has none.
        """
        rows = self._rows[users]
        vectors = take(self._store, np.maximum(rows, 0))
        present = torch.from_numpy(rows >= 0)
        vectors[~present] = torch.from_numpy(self.mean)
        return vectors, present.float()


def take(store: KnowledgeStore, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """Vectors of some rows, copied out of the map.

    Shape:
        rows: (n,), int64, in [0, N).
        returns: (n, H), float32.
    """
    # torch gathers rows of a map several times as fast as NumPy, and converts them faster.
    at = torch.from_numpy(rows)
    found = torch.from_numpy(store.vectors).index_select(0, at).float()
    if store.scales is not None:
        found *= torch.from_numpy(store.scales).index_select(0, at).unsqueeze(1)
    return found


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
    vectors: npt.NDArray[np.float32] = take(store, rows).numpy()
    if len(vectors) == 1:
        return vectors
    spread = vectors.std(axis=0)
    standardised = (vectors - vectors.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return np.asarray(standardised, dtype=np.float32)
