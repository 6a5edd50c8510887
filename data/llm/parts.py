"""A knowledge store while it is being made: parts that survive a kill, and their merge.

A folder in the making::

    settings.json              what must not change between two runs into this folder
    parts/part-RRR-NNNNN.parquet   vectors of some keys, each file complete or not there
    parts/done-RRR-of-WWW.json     rank RRR of WWW has all its keys; with its counts
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.llm.store import KEYS, MANIFEST, VECTORS, differences

SETTINGS = "settings.json"
COLUMNS = ["index", "key", "tokens", "truncated", "has_history"]
SUMMED = ("keys", "no_history", "left_out")


class StoreWriter:
    """Writes one rank's share of a level's vectors.

    Raises:
        ValueError: the folder was begun with other settings, or a part cannot be read.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], *, rank: int, world_size: int
    ) -> None:
        self.folder, self.settings = folder, settings
        self.rank, self.world_size = rank, world_size
        self.parts = folder / "parts"
        self.is_complete = (folder / MANIFEST).is_file()
        folder.mkdir(parents=True, exist_ok=True)
        _same_settings(folder, settings)
        if not self.is_complete:
            self.parts.mkdir(exist_ok=True)
        mine = sorted(self.parts.glob(f"part-{rank:03d}-*.parquet"))
        self._next = int(mine[-1].stem.rpartition("-")[2]) + 1 if mine else 0

    def done_index(self) -> np.ndarray:
        """Positions of the keys that any part holds, int64, sorted."""
        found = [_read_part(file, ["index"])["index"].to_numpy() for file in self._part_files()]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def write(self, rows: dict[str, list[Any]], vectors: np.ndarray) -> None:
        """Save a part: the columns index, key, tokens, truncated, has_history, and the vectors.

        Raises:
            ValueError: a vector has a value that is not finite; names the key.
        """
        stored = vectors.astype(self.settings["storage"])
        bad = ~np.isfinite(stored).all(axis=1)
        if bad.any():
            key = rows["key"][int(bad.argmax())]
            raise ValueError(
                f"every value of a vector must be finite; the vector of {key!r} is not, as "
                f"{self.settings['storage']}: use float32 for storage or for the model."
            )
        flat = pa.array(stored.reshape(-1))
        table = pa.table({name: rows[name] for name in COLUMNS}).append_column(
            "vector", pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        )
        file = self.parts / f"part-{self.rank:03d}-{self._next:05d}.parquet"
        with _replacing(file) as scratch:
            pq.write_table(table, scratch, compression="lz4", use_dictionary=False)
        self._next += 1

    def finish(self, counts: dict[str, int]) -> bool:
        """Say that this rank's share is done; the last rank to say so merges. True when merged."""
        done = self.parts / f"done-{self.rank:03d}-of-{self.world_size:03d}.json"
        with _locked(self.folder / ".lock"):
            if (self.folder / MANIFEST).is_file():
                return True
            _write_json(done, counts)
            shares = sorted(self.parts.glob(f"done-*-of-{self.world_size:03d}.json"))
            found = [json.loads(share.read_text()) for share in shares]
            # A share may have been called done before someone deleted a part of it.
            missing = sum(share["keys"] for share in found) - len(self.done_index())
            if len(shares) < self.world_size or missing > 0:
                return False
            self._merge(found)
        return True

    def _part_files(self) -> list[Path]:
        return sorted(self.parts.glob("part-*.parquet"))

    def _merge(self, shares: list[dict[str, int]]) -> None:
        """Parts -> keys.parquet, vectors.npy, manifest.json (last), in the order of `index`."""
        files = self._part_files()
        tables = [_read_part(file, COLUMNS) for file in files]
        keys = pa.concat_tables(tables).sort_by("index") if tables else pa.table({"index": []})
        index = keys["index"].to_numpy()
        counts = shares[0] | {name: sum(share[name] for share in shares) for name in SUMMED}
        if len(index) == 0:
            raise ValueError(f"{self.folder}: a store must have at least 1 key; got no prompt.")
        if len(np.unique(index)) < len(index) or len(index) != counts["keys"]:
            raise ValueError(
                f"{self.parts} must hold {counts['keys']} keys, each once; found {len(index)}, "
                f"{len(np.unique(index))} of them distinct: delete {self.folder} and encode again."
            )
        moments = self._merge_vectors(files, tables, index)
        with _replacing(self.folder / KEYS) as scratch:
            pq.write_table(keys, scratch)
        manifest = self.settings | counts | {"tokens": int(keys["tokens"].to_numpy().sum())}
        manifest |= {"truncated": int(keys["truncated"].to_numpy().sum())} | moments
        manifest["bytes"] = {n: (self.folder / n).stat().st_size for n in (KEYS, VECTORS)}
        _write_json(self.folder / MANIFEST, manifest)
        shutil.rmtree(self.parts)

    def _merge_vectors(
        self, files: list[Path], tables: list[pa.Table], index: np.ndarray
    ) -> dict[str, Any]:
        """Write vectors.npy; mean and standard deviation of each dimension, in float64."""
        size = pq.read_schema(files[0]).field("vector").type.list_size
        shape = (len(index), size)
        with _replacing(self.folder / VECTORS) as scratch:
            with scratch.open("wb") as opened:
                _npy_header(opened, shape, self.settings["storage"])
                # Claims the room now: a full disk is an error here, not a crash in the memory map.
                os.posix_fallocate(opened.fileno(), 0, opened.tell() + _nbytes(shape, self))
            vectors = np.lib.format.open_memmap(scratch, mode="r+")
            for file, table in zip(files, tables, strict=True):
                column = _read_part(file, ["vector"])["vector"].combine_chunks()
                rows = np.searchsorted(index, table["index"].to_numpy())
                vectors[rows] = column.values.to_numpy().reshape(-1, size)
            vectors.flush()
            mean, std = _moments(vectors)
            del vectors
        return {"hidden_dim": size, "mean": mean.tolist(), "std": std.tolist()}


def _nbytes(shape: tuple[int, int], writer: StoreWriter) -> int:
    return shape[0] * shape[1] * int(np.dtype(writer.settings["storage"]).itemsize)


def _npy_header(opened: Any, shape: tuple[int, int], dtype: str) -> None:
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(opened, header)


def _moments(vectors: np.ndarray, rows: int = 65_536) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation by Chan's update, so that large stores lose no digits."""
    count, mean, spread = 0, np.zeros(vectors.shape[1]), np.zeros(vectors.shape[1])
    for start in range(0, len(vectors), rows):
        chunk = vectors[start : start + rows].astype(np.float64)
        chunk_mean = chunk.mean(axis=0)
        total = count + len(chunk)
        shift = chunk_mean - mean
        spread += ((chunk - chunk_mean) ** 2).sum(axis=0) + shift**2 * count * len(chunk) / total
        mean += shift * len(chunk) / total
        count = total
    return mean, np.sqrt(spread / count)


def _same_settings(folder: Path, settings: dict[str, Any]) -> None:
    with _locked(folder / ".lock"):
        # A finished store may have been copied without its settings; the manifest repeats them.
        file = folder / (MANIFEST if (folder / MANIFEST).is_file() else SETTINGS)
        if not file.is_file():
            _write_json(file, settings)
            return
        found = json.loads(file.read_text())
    differ = differences(found, settings)
    if differ:
        raise ValueError(
            f"{folder} must be encoded with one setting; it was begun with {'; '.join(differ)}: "
            f"use another folder or delete this one."
        )


def _read_part(file: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{file} must be a readable part; {str(error).splitlines()[0]}: delete that file, its "
            f"keys are encoded again."
        ) from None


def _write_json(file: Path, value: dict[str, Any]) -> None:
    with _replacing(file) as scratch:
        scratch.write_text(json.dumps(value, indent=1))


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A scratch path that becomes `file` when all went well, and is gone when not."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
