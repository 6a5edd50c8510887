"""Quantized embedding tables of an export, and their lookup."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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
from torch import Tensor

from msrec.launch.serving.export_folder import INT8_SCALE_BYTES, ExportTable, TableDtype

FBGEMM_TYPES = {"int8": SparseType.INT8, "float16": SparseType.FP16}


def table_path(folder: Path, table: str) -> Path:
    """Returns the file of a table in a folder of tables of an export."""
    return folder / f"{table}.npy"


def quantize_rows(weight: Tensor, dtype: TableDtype) -> npt.NDArray[np.uint8]:
    """Returns rows as the bytes that the file of a table holds.

    An int8 row is `scale * q + offset` with q in 0..255 and scale = (max - min) / 255 of the row.
    The error of a value is at most half a scale, plus the rounding of scale and offset to float16.

    Shape:
        weight: (rows, dim), float32.
        returns: (rows, row_bytes), uint8; int8 rows begin with scale and offset.
    """
    if dtype == "float16":
        halves: npt.NDArray[np.uint8] = weight.half().contiguous().numpy().view(np.uint8)
        return halves
    quantize = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf
    scale_last = quantize(weight.contiguous(), 8)
    scale_first: npt.NDArray[np.uint8] = scale_last.roll(INT8_SCALE_BYTES, dims=1).numpy()
    return scale_first


def dequantize_rows(
    rows: npt.NDArray[np.uint8], dtype: TableDtype
) -> npt.NDArray[np.floating[Any]]:
    """Returns the values (rows, dim) of rows that `quantize_rows` made."""
    if dtype == "float16":
        return rows.view(np.float16)
    halves = rows[:, :INT8_SCALE_BYTES].view(np.float16)
    scale, offset = np.split(halves.astype(np.float32), 2, axis=1)
    return scale * rows[:, INT8_SCALE_BYTES:] + offset


def write_tables(
    folder: Path, tables: Iterable[tuple[ExportTable, Iterable[Tensor]]]
) -> list[ExportTable]:
    """Writes the files of tables from their rows: chunks of (n, dim), float32, in order."""
    folder.mkdir()
    written = []
    for table, chunks in tables:
        path, shape = table_path(folder, table.name), (table.rows, table.row_bytes)
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        start = 0
        for rows in chunks:
            file[start : start + len(rows)] = quantize_rows(rows, table.kind)
            start += len(rows)
        assert start == table.rows
        file.flush()
        written.append(table)
    return written


class QuantizedTables:
    """Tables of the features of an export in memory, looked up by one call.

    Args:
        tables: the tables.
        folder: the folder that holds their files.
        features: the features in the order of lookup.

    Raises:
        ValueError: the size of a file does not fit its table.
    """

    def __init__(
        self, tables: Sequence[ExportTable], folder: Path, features: Sequence[str]
    ) -> None:
        table_of = {name: i for i, table in enumerate(tables) for name in table.features}
        self._tables = IntNBitTableBatchedEmbeddingBagsCodegen(
            [(t.name, t.rows, t.dim, FBGEMM_TYPES[t.kind], EmbeddingLocation.HOST) for t in tables],
            feature_table_map=[table_of[name] for name in features],
            pooling_mode=PoolingMode.SUM,
            device="cpu",
            bounds_check_mode=BoundsCheckMode.FATAL,
            output_dtype=SparseType.FP32,
        )
        self._tables.initialize_weights()
        weights = self._tables.split_embedding_weights(split_scale_shifts=False)
        for table, (weight, _) in zip(tables, weights, strict=True):
            weight.copy_(torch.from_numpy(map_table(folder, table)))

    def lookup(self, ids: Tensor, offsets: Tensor) -> Tensor:
        """Returns the sum of the rows of each bag.

        Shape:
            ids: (N,), int32, ordered by feature, then by row.
            offsets: (F * B + 1,), int32.
            returns: (B, sum of the features' dims), float32.

        Raises:
            RuntimeError: an id is out of range; `RowEncoder` refuses such ids before.
        """
        return torch.as_tensor(self._tables(ids, offsets))


def map_table(folder: Path, table: ExportTable) -> npt.NDArray[np.uint8]:
    """Maps the rows of a table into memory, (rows, row_bytes).

    Raises:
        ValueError: the size of the file does not fit the table.
    """
    path, shape = table_path(folder, table.name), (table.rows, table.row_bytes)
    # Mode "c" keeps changes private to this process. torch warns of read-only arrays.
    rows = np.load(path, mmap_mode="c", allow_pickle=False)
    if rows.shape != shape or rows.dtype != np.uint8:
        raise ValueError(
            f"{path} must hold {shape} bytes, as export.json says; it holds {rows.shape} of "
            f"{rows.dtype}. Export again."
        )
    return np.asarray(rows)
