"""Vectors made smaller: standardised, projected on principal components, rounded to 8 bits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
CHUNK_ROWS = 65_536
SAMPLE_ROWS = 20_000
LEVELS = 127
"""An int8 vector uses -127 to 127, times one scale a vector."""


def chunks(vectors: npt.NDArray[Any], rows: int = CHUNK_ROWS) -> Iterator[tuple[slice, Floats]]:
    """Vectors as float32, some at a time, so that a memory-mapped matrix may be of any size."""
    for start in range(0, len(vectors), rows):
        at = slice(start, min(start + rows, len(vectors)))
        yield at, vectors[at].astype(np.float32)


def moments(parts: Iterator[tuple[slice, Floats]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Mean and standard deviation (H,), float64, by Chan's update: large stores lose no digits."""
    count, mean, spread = 0, np.zeros(1), np.zeros(1)
    for _, rows in parts:
        chunk = rows.astype(np.float64)
        chunk_mean = chunk.mean(axis=0)
        total = count + len(chunk)
        shift = chunk_mean - mean
        spread = (
            spread + ((chunk - chunk_mean) ** 2).sum(axis=0) + shift**2 * count * len(chunk) / total
        )
        mean = mean + shift * len(chunk) / total
        count = total
    return mean, np.sqrt(spread / count)


@dataclass(frozen=True)
class Projection:
    """y = ((h - mean) / std) components, where std is not 0.

    Shape:
        mean, std: (H,), float32.
        components: (H, D), float32, orthonormal columns; None leaves all dimensions.
        explained: share of the sample's variance that the components keep.
    """

    mean: Floats
    std: Floats
    components: Floats | None = None
    explained: float = 1.0

    def __call__(self, vectors: Floats) -> Floats:
        """(N, H) -> (N, D)."""
        known = self.std > 0
        scale = np.where(known, 1 / np.where(known, self.std, 1), 0).astype(np.float32)
        standard = (vectors - self.mean) * scale
        made = standard if self.components is None else standard @ self.components
        return np.asarray(made, dtype=np.float32)


def fit_projection(vectors: npt.NDArray[Any], dims: int | None, seed: int = 0) -> Projection:
    """Standardisation by all vectors, and principal components of a sample of them.

    Raises:
        ValueError: `dims` is not in [1, H].
    """
    mean, std = (part.astype(np.float32) for part in moments(chunks(vectors)))
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
    values, axes = np.linalg.eigh(sample.T @ sample / len(sample))
    kept = axes[:, ::-1][:, :dims]
    # The sign of an axis is free: the largest entry is positive, so that two runs agree.
    kept = kept * np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(dims)])
    total = float(values.sum())
    explained = float(values[::-1][:dims].sum()) / total if total else 1.0
    return Projection(mean, std, kept.astype(np.float32), explained)


def to_int8(vectors: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Rounded vectors (N, D) and their scales (N,): vector = rounded * scale.

    Example:
        >>> rounded, scale = to_int8(np.array([[1.0, -0.5, 0.0]], dtype=np.float32))
        >>> rounded.tolist(), (rounded * scale[:, None]).round(2).tolist()
        ([[127, -64, 0]], [[1.0, -0.5, 0.0]])
    """
    scale = np.abs(vectors).max(axis=1) / LEVELS
    safe = np.where(scale > 0, scale, 1)[:, None]
    return np.rint(vectors / safe).astype(np.int8), scale.astype(np.float32)
