"""Nearest neighbours of a key in a knowledge store, by cosine."""

import numpy as np

from msrec.data.llm.compression import Projection, float_chunks
from msrec.data.llm.knowledge import read_vectors
from msrec.data.llm.store import KnowledgeStore


def standardised(store: KnowledgeStore, vectors: np.ndarray) -> np.ndarray:
    """Returns (vectors - mean) / std, 0 where std is 0.

    Shape:
        vectors: (n, H), float.
        returns: (n, H), float32.
    """
    return Projection(store.mean, store.std)(vectors)


def row_of(store: KnowledgeStore, key: str) -> int | None:
    """Returns the row of a key that is given as text; None if the store lacks it."""
    is_integer = np.issubdtype(store.keys.dtype, np.integer)
    if is_integer and not key.lstrip("-").isdecimal():
        return None
    row = int(store.rows(np.array([int(key) if is_integer else key]))[0])
    return row if row >= 0 else None


def neighbours(
    store: KnowledgeStore, row: int, projection: Projection | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all other rows, the nearest first, by cosine after a projection.

    Without a projection, the vectors are standardised.

    Shape:
        returns: rows, (N - 1,), int64, and their cosines, (N - 1,), float32.
    """
    project = projection or Projection(store.mean, store.std)
    own = unit_vectors(project(read_vectors(store, np.array([row])).float().numpy()))[0]
    cosines = np.concatenate(
        [
            unit_vectors(project(vectors)) @ own
            for _, vectors in float_chunks(store.vectors, store.scales)
        ]
    )
    order = np.argsort(-cosines)
    order = order[order != row]
    return order, cosines[order]


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Scales rows (n, H) to length 1; a row of zeros stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1))
