"""Smaller vectors: standardised or half-whitened principal components, rounded to 8 bits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
CHUNK_ROWS = 65_536
SAMPLE_ROWS = 20_000
"""Vectors that `fit_projection` computes the principal components from."""
MIN_VARIANCE = 1e-8
"""Variance, as a share of the largest one, below which a component is rounding noise."""
MAX_INT8 = 127
"""Largest magnitude of a stored number: the range is symmetric, so -128 is not used."""


def float_chunks(
    vectors: npt.NDArray[Any], scales: Floats | None = None, chunk_rows: int = CHUNK_ROWS
) -> Iterator[tuple[slice, Floats]]:
    """Yields slices of rows and their vectors, float32; a mapped matrix may exceed the memory."""
    for start in range(0, len(vectors), chunk_rows):
        at = slice(start, min(start + chunk_rows, len(vectors)))
        rows = vectors[at].astype(np.float32)
        yield at, rows if scales is None else rows * scales[at, None]


def moments(chunks: Iterator[tuple[slice, Floats]]) -> tuple[Doubles, Doubles]:
    """Returns mean and standard deviation (H,), float64, of all chunks in one pass."""
    # Chan's update merges the moments of a chunk into those so far. Unlike sums of squares, it
    # does not lose digits where the mean is large compared with the deviation.
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    for _, rows in chunks:
        chunk = rows.astype(np.float64)
        chunk_mean = chunk.mean(axis=0)
        total = count + len(chunk)
        shift = chunk_mean - mean
        squares = squares + ((chunk - chunk_mean) ** 2).sum(axis=0)
        squares = squares + shift**2 * count * len(chunk) / total
        mean = mean + shift * len(chunk) / total
        count = total
    return mean, np.sqrt(squares / count)


@dataclass(frozen=True)
class Projection:
    """Linear map y = ((h - mean) / std) components; dimensions whose std is 0 become 0.

    Shape:
        mean, std: (H,), float32.
        components: (H, D), float32, orthogonal columns; None keeps all dimensions.
        explained: share of the variance that the components keep, in [0, 1].
    """

    mean: Floats
    std: Floats
    components: Floats | None = None
    explained: float = 1.0

    def __call__(self, vectors: Floats) -> Floats:
        """(N, H) -> (N, D)."""
        varies = self.std > 0
        scale = np.where(varies, 1 / np.where(varies, self.std, 1), 0).astype(np.float32)
        standard = (vectors - self.mean) * scale
        projected = standard if self.components is None else standard @ self.components
        return np.asarray(projected, dtype=np.float32)


def fit_projection(vectors: npt.NDArray[Any], dims: int | None, seed: int = 0) -> Projection:
    """Fits mean and std to all vectors, and `dims` principal components to a sample of them.

    Raises:
        ValueError: `dims` is not in [1, H].
    """
    mean, std = (moment.astype(np.float32) for moment in moments(float_chunks(vectors)))
    if dims is None:
        return Projection(mean, std)
    width = vectors.shape[1]
    if not 1 <= dims <= width:
        raise ValueError(f"llm.pca must be from 1 to the {width} numbers of a vector; got {dims}.")
    rows = np.arange(len(vectors))
    if len(rows) > SAMPLE_ROWS:
        drawn = np.random.default_rng(seed).choice(len(rows), SAMPLE_ROWS, replace=False)
        rows = np.sort(drawn)
    sample = Projection(mean, std)(vectors[rows].astype(np.float32)).astype(np.float64)
    axes, _, explained = _principal_axes(sample.T @ sample / len(sample), dims)
    return Projection(mean, std, axes.astype(np.float32), explained)


def fit_half_whitening(vectors: npt.NDArray[Any], dims: int) -> Projection:
    """Fits principal components of the centred vectors, each divided by variance^(1/4).

    A projected component then has the square root of its variance: strong components lose their
    dominance, and weak ones are not raised to the level of the others as in full whitening. The
    dimensions are not standardised first, since that would whiten vectors whose dimensions are
    uncorrelated already, as those of LSA are. Fewer than `dims` components are returned where the
    vectors have fewer that vary.

    Raises:
        ValueError: `dims` is below 1, there is no vector, or all vectors are equal.
    """
    if dims < 1 or len(vectors) == 0:
        raise ValueError(
            f"half-whitening must have a component and a vector; got {dims} components of "
            f"{len(vectors)} vectors."
        )
    mean = moments(float_chunks(vectors))[0]
    covariance = np.zeros((len(mean), len(mean)))
    for _, rows in float_chunks(vectors):
        centred = rows.astype(np.float64) - mean
        covariance += centred.T @ centred / len(vectors)
    axes, variances, explained = _principal_axes(covariance, min(dims, len(mean)))
    kept = variances > MIN_VARIANCE * variances[0]
    if not kept.any():
        raise ValueError(f"vectors must differ to be projected; all {len(vectors)} are equal.")
    components = (axes[:, kept] * variances[kept] ** -0.25).astype(np.float32)
    mean32 = mean.astype(np.float32)
    return Projection(mean32, np.ones_like(mean32), components, explained)


def _principal_axes(covariance: Doubles, dims: int) -> tuple[Doubles, Doubles, float]:
    """Returns the first axes (H, dims), their variances (dims,), and their share of the total."""
    variances, axes = np.linalg.eigh(covariance)  # smallest first
    kept = axes[:, ::-1][:, :dims]
    # Eigenvectors may have either sign. The largest entry is made positive, so that runs agree.
    kept = kept * np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(dims)])
    total, largest = float(variances.sum()), variances[::-1][:dims]
    return kept, largest, float(largest.sum()) / total if total else 1.0


def to_int8(vectors: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Rounds vectors (N, D) to int8 with a scale for each, (N,): vector = rounded * scale.

    A scale for each vector, not one for all, keeps the rounding error relative to its length.

    Example:
        >>> rounded, scale = to_int8(np.array([[1.0, -0.5, 0.0]], dtype=np.float32))
        >>> rounded.tolist(), (rounded * scale[:, None]).round(2).tolist()
        ([[127, -64, 0]], [[1.0, -0.5, 0.0]])
    """
    scale = np.abs(vectors).max(axis=1) / MAX_INT8
    divisor = np.where(scale > 0, scale, 1)[:, None]
    return np.rint(vectors / divisor).astype(np.int8), scale.astype(np.float32)
