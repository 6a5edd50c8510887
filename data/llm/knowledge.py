"""User knowledge, item knowledge and scenario knowledge: a store's vectors for a dataset."""

import copy
import logging
import zlib
from typing import Literal, Self

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
    """User knowledge or item knowledge: vectors by index; an entity is a user or an item.

    Args:
        dataset: the dataset folder; its users.parquet (items.parquet) has the keys.
        level: user or item.
        store: the level's vectors.
        missing: for entities without a vector, "mean" gives the mean vector and "error" refuses.
        control: replaces the vectors, to test whether their meaning matters: "shuffled" gives each
            entity the vector of another one; "random" and "learned" give normal random numbers (for
            "learned", the model has a learned vector in their place).
        seed: of the control.

    Raises:
        ValueError: `missing` is "error" and an entity has no vector.
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
        keys = read_parquet(dataset / f"{level}s.parquet", [key])[key].to_numpy(
            zero_copy_only=False
        )
        rows = store.rows(keys)
        has_vector = rows >= 0
        self.num_missing = int((~has_vector).sum())
        if self.num_missing and missing == "error":
            first = keys[np.argmax(~has_vector)]
            raise ValueError(
                f"every {level} must have a vector (llm.missing=error); {self.num_missing} of "
                f"{len(keys)} have none, the first is {first}. Run `msrec encode` again."
            )
        if self.num_missing:
            log.warning("%d of %d %ss have no vector", self.num_missing, len(keys), level)
        self.mean, self.std = store.mean, store.std
        self.dim = int(store.vectors.shape[1])
        # The level is in the seed, so that a user and an item of equal index differ.
        rng = np.random.default_rng([seed, zlib.crc32(level.encode())])
        if control == "shuffled":
            rows[has_vector] = rng.permutation(rows[has_vector])
        self._vectors, self._scales = store_tensors(store)
        if control not in ("none", "shuffled"):
            numbers = rng.standard_normal((len(keys), self.dim), dtype=np.float32)
            self._vectors, self._scales = torch.from_numpy(numbers), None
            self.mean, self.std = np.zeros_like(self.mean), np.ones_like(self.std)
            rows = np.arange(len(keys))
        self._rows = torch.from_numpy(np.where(has_vector, rows, 0))
        self._has = torch.from_numpy(has_vector)
        self._filler = torch.from_numpy(self.mean)

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors, and of the row of each entity, as they are on a device."""
        parts = (self._vectors, self._scales, self._rows, self._has)
        return sum(part.nbytes for part in parts if part is not None)

    def to(self, device: torch.device) -> Self:
        """Returns the same vectors on a device, where `gather` takes and returns tensors of it."""
        moved = copy.copy(self)
        for name in ("_vectors", "_scales", "_rows", "_has", "_filler"):
            tensor = getattr(self, name)
            setattr(moved, name, None if tensor is None else tensor.to(device))
        return moved

    @property
    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the vectors that `gather` returns, (H,), float32."""
        return torch.from_numpy(self.mean), torch.from_numpy(self.std)

    def gather(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the vectors of entities; the mean vector for those without one.

        Shape:
            ids: (U,), int64, indices into users.parquet or items.parquet; -1 for an unknown entity.
            returns: vectors (U, H), of the type that `scaled_rows` gives, and has_vector (U,),
                float32, 1 or 0.
        """
        known = ids.clamp(min=0)
        has_vector = self._has.index_select(0, known) & (ids >= 0)
        rows = self._rows.index_select(0, known)
        vectors = scaled_rows(self._vectors, self._scales, rows)
        filler = self._filler.to(vectors.dtype)
        if vectors.device.type == "cpu":
            vectors[~has_vector] = filler  # few rows, if any; a GPU would wait for their number
        else:
            vectors = torch.where(has_vector.unsqueeze(1), vectors, filler)
        return vectors, has_vector.float()


def store_tensors(store: KnowledgeStore) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns the mapped vectors of a store (N, H) and, of an int8 store, their scales (N,)."""
    scales = None if store.scales is None else torch.from_numpy(store.scales)
    return torch.from_numpy(store.vectors), scales


def scaled_rows(
    vectors: torch.Tensor, scales: torch.Tensor | None, rows: torch.Tensor
) -> torch.Tensor:
    """Returns some rows of a store's vectors.

    Shape:
        vectors: (N, H), scales: (N,), see `store_tensors`.
        rows: (n,), int64, in [0, N).
        returns: (n, H), float32 for an int8 store, else the store's type: the model converts
            float16 on its device, so that half as many bytes travel there.
    """
    # torch gathers rows of a memory map several times as fast as NumPy.
    chosen = vectors.index_select(0, rows)
    if scales is None:
        return chosen
    # Converted first and scaled in place: a product of mixed types takes a quarter longer.
    return chosen.float().mul_(scales.index_select(0, rows).unsqueeze(1))


def read_vectors(store: KnowledgeStore, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """Reads the vectors of rows (n,) of a store, see `scaled_rows`."""
    return scaled_rows(*store_tensors(store), torch.from_numpy(rows))


def scenario_vectors(store: KnowledgeStore, schema: Schema) -> npt.NDArray[np.float32]:
    """Returns the vectors of all scenarios in the schema's order, standardised over them.

    Shape:
        returns: (S, H), float32; for S > 1, each dimension has mean 0 and variance 1, or is 0.

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
    vectors: npt.NDArray[np.float32] = read_vectors(store, rows).float().numpy()
    if len(vectors) == 1:
        return vectors
    std = vectors.std(axis=0)
    standardised = (vectors - vectors.mean(axis=0)) / np.where(std > 0, std, 1)
    return np.asarray(standardised, dtype=np.float32)
