"""Differences of single files: rows of arrays, and values at the end of one-column tables."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from msrec.data.io.parquet_files import read_parquet
from msrec.launch.serving.delta.delta_folder import Part, rows_files
from msrec.launch.serving.export_folder import write_values

CHUNK_BYTES = 1 << 26
Bytes = npt.NDArray[np.uint8]


def write_rows(base: Path, new: Path, folder: Path, name: str) -> Part | None:
    """Writes the rows of an array that differ from those of the base, and the rows after them.

    Returns:
        The part; None if the arrays are of different kinds, or the whole file is smaller.
    """
    before, after = (np.load(path, mmap_mode="r", allow_pickle=False) for path in (base, new))
    if (before.dtype, before.shape[1:]) != (after.dtype, after.shape[1:]) or not after.size:
        return None
    common = min(len(before), len(after))
    differs = [
        rows.start + np.flatnonzero((_bytes(before[rows]) != _bytes(after[rows])).any(axis=1))
        for rows in _chunks(common, after[0].nbytes)
    ]
    changed = np.concatenate([np.empty(0, np.int64), *differs])
    index = np.concatenate([changed, np.arange(common, len(after))])
    index = index.astype(np.int32 if len(after) < 1 << 31 else np.int64)
    if len(index) * (index.itemsize + after[0].nbytes) >= after.nbytes:
        return None
    index_file, rows_file = rows_files(folder, name)
    index_file.parent.mkdir(parents=True, exist_ok=True)
    np.save(index_file, index)
    shape = (len(index), *after.shape[1:])
    rows = np.lib.format.open_memmap(rows_file, "w+", after.dtype, shape)
    for at in _chunks(len(index), after[0].nbytes):
        rows[at] = after[index[at]]
    rows.flush()
    counts = {"changed": len(changed), "new": len(after) - common}
    return Part(kind="rows", shape=list(after.shape), **counts)


def apply_rows(base: Path, folder: Path, name: str, part: Part, out: Path) -> None:
    """Writes the array of a part to `out`."""
    before = np.load(base, mmap_mode="r", allow_pickle=False)
    index, rows = (np.load(path, mmap_mode="r") for path in rows_files(folder, name))
    after = np.lib.format.open_memmap(out, "w+", before.dtype, tuple(part.shape))
    for at in _chunks(min(len(before), len(after)), after[0].nbytes):
        after[at] = before[at]
    for at in _chunks(len(index), after[0].nbytes):
        after[index[at]] = rows[at]
    after.flush()


def write_new_values(base: Path, new: Path, folder: Path, name: str) -> Part | None:
    """Writes the values of a one-column table after those of the base.

    Returns:
        The part; None if the values of the base are not the first ones, or the same bytes cannot be
        made from them.
    """
    before, after = _column(base), _column(new)
    kept = len(before)
    if after.schema != before.schema or not after.slice(0, kept).equals(before):
        return None
    path = folder / "values" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_values(after.slice(kept), path)
    trial = path.with_name(f".{path.name}.trial")
    apply_values(base, folder, name, trial)
    is_same = trial.read_bytes() == new.read_bytes()
    trial.unlink()
    if not is_same:
        path.unlink()
        return None
    return Part(kind="values", new=len(after) - kept)


def apply_values(base: Path, folder: Path, name: str, out: Path) -> None:
    """Writes the values of the base and the new ones after them to `out`."""
    parts = [_column(base), _column(folder / "values" / name)]
    write_values(pa.concat_tables(parts), out)


def _column(path: Path) -> pa.Table:
    return read_parquet(path, pa.parquet.read_schema(path).names)


def _bytes(rows: npt.NDArray[np.generic]) -> Bytes:
    """Returns rows as their bytes (rows, bytes of a row), so that NaN equals itself."""
    values = np.ascontiguousarray(rows).reshape(len(rows), -1)
    seen: Bytes = values.view(np.uint8)
    return seen


def _chunks(num_rows: int, row_bytes: int) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // max(row_bytes, 1))
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))
