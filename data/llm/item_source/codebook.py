"""Codes of item vectors by residual k-means, from coarse to fine."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from msrec.data.io.atomic_files import atomic_path, locked
from msrec.data.llm.compression import Floats, float_chunks
from msrec.data.llm.item_vectors import ItemVectors, has_vectors, item_projection, item_units
from msrec.data.llm.store import KnowledgeStore

FIT_ROWS = 100_000
"""Vectors that the centroids are fitted to, drawn at random if a source has more."""
BATCH_ROWS = 8_192
"""Vectors of a step of k-means."""
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Codebook:
    """Centroids of residual k-means.

    A vector's code at a level is its nearest centroid. The next level codes the rest, vector minus
    centroid, so that the sum of the centroids comes closer to the vector with each level.

    Shape:
        centroids: (L, C, D), float32, C centroids at each of L levels.

    Source:
        Semantic ids: Rajput et al., NeurIPS 2023 (TIGER), and Singh et al., RecSys 2024. They
        quantise the code of a trained autoencoder (RQ-VAE), this class the vectors themselves.

    Example:
        >>> near_far, left_right = [[0, 0], [4, 0]], [[0, -1], [0, 1]]
        >>> codebook = Codebook(np.array([near_far, left_right], np.float32))
        >>> codebook.encode(np.array([[0.1, 0.9], [3.8, -1.1]], np.float32)).tolist()
        [[0, 1], [1, 0]]
    """

    centroids: Floats

    @classmethod
    def fit(cls, vectors: Floats, levels: int, codes: int) -> "Codebook":
        """Fits the levels one after the other to vectors (n, D), float32.

        Raises:
            ValueError: there are fewer vectors than codes.
        """
        if len(vectors) < codes:
            raise ValueError(
                f"llm.semantic_ids.codes must be at most the number of item vectors; got {codes} "
                f"codes and {len(vectors)} vectors."
            )
        # Half a second that only a run with semantic ids needs.
        from sklearn.cluster import MiniBatchKMeans

        residual, centroids = vectors.copy(), []
        for level in range(levels):
            kmeans = MiniBatchKMeans(codes, batch_size=BATCH_ROWS, n_init=3, random_state=level)
            centroids.append(kmeans.fit(residual).cluster_centers_.astype(np.float32))
            residual -= centroids[-1][_nearest(residual, centroids[-1])]
        return cls(np.stack(centroids))

    def encode(self, vectors: npt.NDArray[np.floating]) -> Codes:
        """Returns the codes of vectors (n, D): (n, L), int32 in [0, C)."""
        codes = np.empty((len(vectors), len(self.centroids)), np.int32)
        for at, residual in float_chunks(vectors):
            for level, centroids in enumerate(self.centroids):
                codes[at, level] = _nearest(residual, centroids)
                residual -= centroids[codes[at, level]]
        return codes

    def item_codes(self, items: ItemVectors) -> Codes:
        """Returns the codes of items from 1 to C: (num_items, L), int32; 0 without a vector."""
        codes = np.concatenate([self.encode(vectors) for _, vectors in items.chunks()])
        return np.where(items.has[:, np.newaxis], codes + 1, 0)


def item_codebook(store: KnowledgeStore, dim: int, levels: int, codes: int) -> Codebook:
    """Returns the codebook of a source: the saved one, or one that is fitted, and saved.

    Like the projection of the vectors, it never changes after that.

    Args:
        store: folder of the source.
        dim: number of components of the vectors.
        levels: number of levels.
        codes: number of codes per level.

    Raises:
        FileNotFoundError: the source is remote and has none, see `KnowledgeStore.require_fitted`.
        ValueError: the source has fewer vectors than codes.
    """
    file = store.path / f"codes-{levels}x{codes}-{dim}.npz"
    store.require_fitted(file)
    projection = item_projection(store, dim)  # takes the same lock
    with locked(store.path / ".lock"):  # ranks come here together
        if not file.is_file():
            rows = np.flatnonzero(has_vectors(store))
            if len(rows) > FIT_ROWS:
                rows = np.sort(np.random.default_rng(0).choice(rows, FIT_ROWS, replace=False))
            fitted = Codebook.fit(item_units(store, projection, rows, dim), levels, codes)
            with atomic_path(file) as scratch, scratch.open("wb") as opened:
                np.savez(opened, allow_pickle=False, centroids=fitted.centroids)
    with np.load(file, allow_pickle=False) as arrays:
        return Codebook(arrays["centroids"])


def _nearest(vectors: Floats, centroids: Floats) -> npt.NDArray[np.int64]:
    """Returns the nearest centroid (C, D) of each vector (n, D)."""
    # |v - c|^2 without |v|^2, which is the same for all centroids.
    return np.asarray(((centroids**2).sum(axis=1) - 2 * vectors @ centroids.T).argmin(axis=1))
