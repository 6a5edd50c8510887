"""Keys of a store and how alike their standardised vectors are."""

import numpy as np

from msrec.data.llm.knowledge import take
from msrec.data.llm.store import KnowledgeStore
from msrec.data.llm.store_writer import stored_chunks


def standardised(store: KnowledgeStore, vectors: np.ndarray) -> np.ndarray:
    """(vectors - mean) / std, 0 where std is 0.

    Shape:
        vectors: (n, H), float.
        returns: (n, H), float32.
    """
    scale = np.where(store.std > 0, 1 / np.where(store.std > 0, store.std, 1), 0)
    return np.asarray((vectors - store.mean) * scale, dtype=np.float32)


def row_of(store: KnowledgeStore, key: str) -> int | None:
    """Row of a key given as text, None where the store lacks it."""
    is_number = np.issubdtype(store.keys.dtype, np.integer)
    if is_number and not key.lstrip("-").isdecimal():
        return None
    row = int(store.rows(np.array([int(key) if is_number else key]))[0])
    return row if row >= 0 else None


def neighbours(store: KnowledgeStore, row: int) -> tuple[np.ndarray, np.ndarray]:
    """All other rows by how alike their standardised vectors are, the nearest first.

    Shape:
        returns: rows, (N - 1,), int64, and their cosines, (N - 1,), float32.
    """
    own = unit(standardised(store, take(store, np.array([row])).float().numpy()))[0]
    likeness = np.concatenate(
        [
            unit(standardised(store, rows)) @ own
            for _, rows in stored_chunks(store.vectors, store.scales)
        ]
    )
    order = np.argsort(-likeness)
    order = order[order != row]
    return order, likeness[order]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, H) of length 1; a row of zeros stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1))
