"""Embedding tables of an export: int8 or float16 rows, files of them, and their lookup."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
    BoundsCheckMode,
    EmbeddingLocation,
    PoolingMode,
)
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    IntNBitTableBatchedEmbeddingBagsCodegen,
)
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Kind = Literal["int8", "float16"]
TYPES: dict[Kind, SparseType] = {"int8": SparseType.INT8, "float16": SparseType.FP16}
SCALE_BYTES = 4
"""In front of an int8 row: scale and offset, float16 each."""


class TableSpec(BaseModel):
    """A table: its rows, and the features that look it up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rows: int
    dim: int
    kind: Kind
    features: list[str]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in its file."""
        return self.dim + SCALE_BYTES if self.kind == "int8" else 2 * self.dim


def quantised(weight: Tensor, kind: Kind) -> npt.NDArray[np.uint8]:
    """Rows as the file of a table holds them.

    An int8 row is `scale * q + offset`, q in 0..255, its scale (max - min) / 255 of the row: a
    value is off by at most half a scale, and what float16 rounds of scale and offset.

    Shape:
        weight: (rows, dim), float32.
        returns: (rows, row_bytes), uint8; of int8 scale and offset stand first.
    """
    if kind == "float16":
        halves: npt.NDArray[np.uint8] = weight.half().contiguous().numpy().view(np.uint8)
        return halves
    fused = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(weight.contiguous(), 8)
    rolled: npt.NDArray[np.uint8] = fused.roll(SCALE_BYTES, dims=1).numpy()
    return rolled


class Tables:
    """Looks ids up in all tables by one call.

    Ids are checked by whoever makes them; a lookup checks again, and raises for one out of range.

    Raises:
        ValueError: a file has another size than its table.
    """

    def __init__(self, specs: Sequence[TableSpec], folder: Path, features: Sequence[str]) -> None:
        self.specs = list(specs)
        of = {name: place for place, spec in enumerate(specs) for name in spec.features}
        self._tbe = IntNBitTableBatchedEmbeddingBagsCodegen(
            [(s.name, s.rows, s.dim, TYPES[s.kind], EmbeddingLocation.HOST) for s in specs],
            feature_table_map=[of[name] for name in features],
            pooling_mode=PoolingMode.SUM,
            device="cpu",
            bounds_check_mode=BoundsCheckMode.FATAL,
            output_dtype=SparseType.FP32,
        )
        self._tbe.initialize_weights()
        placed = self._tbe.split_embedding_weights(split_scale_shifts=False)
        for spec, (target, _) in zip(specs, placed, strict=True):
            target.copy_(torch.from_numpy(_mapped(file_of(folder, spec.name), spec)))

    def lookup(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Sums of the rows of each bag.

        Shape:
            ids: (N,), int32, feature by feature, in a feature row by row.
            offsets: (F * B + 1,), int32.
            returns: (B, sum of the features' dims), float32.
        """
        return torch.as_tensor(self._tbe(ids, offsets))


def file_of(folder: Path, table: str) -> Path:
    """Where a table lies in an export."""
    return folder / "tables" / f"{table}.npy"


def _mapped(path: Path, spec: TableSpec) -> npt.NDArray[np.uint8]:
    # "c" is private to this process: torch warns of arrays that cannot be written.
    rows = np.load(path, mmap_mode="c", allow_pickle=False)
    shape = (spec.rows, spec.row_bytes)
    if rows.shape != shape or rows.dtype != np.uint8:
        raise ValueError(
            f"{path} must hold {shape} bytes as export.json says; it holds {rows.shape} of "
            f"{rows.dtype}. Export again."
        )
    return np.asarray(rows)
