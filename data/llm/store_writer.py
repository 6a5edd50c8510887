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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.io.atomic_files import atomic_path, checksums, write_json
from msrec.data.llm.compression import chunks, fit_projection, moments, to_int8
from msrec.data.llm.store import KEYS, MANIFEST, PROJECTION, SCALES, VECTORS, differences

SETTINGS = "settings.json"
RAW = "raw.npy"
COLUMNS = ["index", "key", "tokens", "truncated", "has_history", "prompt", "text"]
SUMMED = ("keys", "no_history", "left_out", "history_cut", "reused")
DTYPES = ("float16", "float32")


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
        """Save a part: the columns `COLUMNS`, of which text and prompt may lack, and the vectors.

        Raises:
            ValueError: a vector has a value that is not finite; names the key.
        """
        dtype = _part_dtype(self.settings)
        stored = vectors.astype(dtype)
        bad = ~np.isfinite(stored).all(axis=1)
        if bad.any():
            key = rows["key"][int(bad.argmax())]
            raise ValueError(
                f"every value of a vector must be finite; the vector of {key!r} is not, as "
                f"{dtype}: use float32 for storage or for the model."
            )
        flat = pa.array(stored.reshape(-1))
        columns = {name: rows.get(name, [None] * len(stored)) for name in COLUMNS}
        table = pa.table(columns, schema=_schema(columns)).append_column(
            "vector", pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        )
        file = self.parts / f"part-{self.rank:03d}-{self._next:05d}.parquet"
        with atomic_path(file) as scratch:
            pq.write_table(table, scratch, compression="lz4", use_dictionary=False)
        self._next += 1

    def finish(self, counts: dict[str, int]) -> bool:
        """Say that this rank's share is done; the last rank to say so merges. True when merged."""
        done = self.parts / f"done-{self.rank:03d}-of-{self.world_size:03d}.json"
        with _locked(self.folder / ".lock"):
            if (self.folder / MANIFEST).is_file():
                return True
            write_json(done, counts)
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
        """Parts -> keys, vectors and manifest (last), in the order of `index`."""
        files = self._part_files()
        tables = [_read_part(file, COLUMNS) for file in files]
        keys = pa.concat_tables(tables).sort_by("index") if tables else pa.table({"index": []})
        index = keys["index"].to_numpy()
        counts = shares[0] | {name: sum(share.get(name, 0) for share in shares) for name in SUMMED}
        if len(index) == 0:
            raise ValueError(f"{self.folder}: a store must have at least 1 key; got no prompt.")
        if len(np.unique(index)) < len(index) or len(index) != counts["keys"]:
            raise ValueError(
                f"{self.parts} must hold {counts['keys']} keys, each once; found {len(index)}, "
                f"{len(np.unique(index))} of them distinct: delete {self.folder} and encode again."
            )
        if keys["text"].null_count == len(keys):
            keys = keys.drop_columns("text")
        made = self._merge_vectors(files, tables, index)
        with atomic_path(self.folder / KEYS) as scratch:
            pq.write_table(keys, scratch)
        manifest = self.settings | counts | {"tokens": int(keys["tokens"].to_numpy().sum())}
        manifest |= {"truncated": int(keys["truncated"].to_numpy().sum())} | made
        names = [n for n in (KEYS, VECTORS, SCALES, PROJECTION) if (self.folder / n).is_file()]
        manifest["bytes"] = {n: (self.folder / n).stat().st_size for n in names}
        manifest["crc32"] = checksums(self.folder, [self.folder / n for n in names])
        write_json(self.folder / MANIFEST, manifest)
        shutil.rmtree(self.parts)

    def _merge_vectors(
        self, files: list[Path], tables: list[pa.Table], index: np.ndarray
    ) -> dict[str, Any]:
        """Write the vectors; what the manifest says of them."""
        if self.settings["storage"] in DTYPES and self.settings.get("pca") is None:
            with atomic_path(self.folder / VECTORS) as scratch:
                vectors = self._gather(scratch, files, tables, index)
                mean, std = moments(chunks(vectors))
            size = vectors.shape[1]
            return {"hidden_dim": size, "mean": mean.tolist(), "std": std.tolist()}
        raw = self.folder / RAW
        try:
            return self._write_projected(self._gather(raw, files, tables, index))
        finally:
            raw.unlink(missing_ok=True)

    def _gather(
        self, path: Path, files: list[Path], tables: list[pa.Table], index: np.ndarray
    ) -> np.ndarray:
        """All vectors as the parts have them, in order, in one mapped file."""
        column = pq.read_schema(files[0]).field("vector").type
        shape = (len(index), column.list_size)
        vectors = _new_array(path, shape, _part_dtype(self.settings))
        for file, table in zip(files, tables, strict=True):
            found = _read_part(file, ["vector"])["vector"].combine_chunks()
            rows = np.searchsorted(index, table["index"].to_numpy())
            vectors[rows] = found.values.to_numpy().reshape(-1, shape[1])
        vectors.flush()
        return vectors

    def _write_projected(self, raw: np.ndarray) -> dict[str, Any]:
        """Standardise, project, round; keep by what."""
        storage, dims = self.settings["storage"], self.settings.get("pca")
        projection = fit_projection(raw, dims)
        size = raw.shape[1] if dims is None else dims
        names = [VECTORS, *([SCALES] if storage == "int8" else [])]
        with ExitStack() as stack:
            paths = [stack.enter_context(atomic_path(self.folder / name)) for name in names]
            out = _new_array(paths[0], (len(raw), size), storage)
            scales = _new_array(paths[1], (len(raw),), "float32") if storage == "int8" else None
            for at, rows in chunks(raw):
                made = projection(rows)
                if scales is None:
                    out[at] = made
                else:
                    out[at], scales[at] = to_int8(made)
            out.flush()
            if scales is not None:
                scales.flush()
            mean, std = moments(stored_chunks(out, scales))
        with atomic_path(self.folder / PROJECTION) as scratch, scratch.open("wb") as opened:
            axes = projection.components
            kept = {} if axes is None else {"components": axes}
            np.savez(opened, allow_pickle=False, mean=projection.mean, std=projection.std, **kept)
        found = {"hidden_dim": size, "raw_dim": raw.shape[1], "explained": projection.explained}
        return found | {"mean": mean.tolist(), "std": std.tolist()}


def stored_chunks(
    vectors: np.ndarray, scales: np.ndarray | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Vectors as a reader sees them, some at a time."""
    for at, rows in chunks(vectors):
        yield at, rows if scales is None else rows * scales[at, None]


def _part_dtype(settings: dict[str, Any]) -> str:
    """Parts of a store of 8 bits have 16: the scale is known when all vectors are there."""
    return "float16" if settings["storage"] == "int8" else str(settings["storage"])


def _new_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """A memory-mapped .npy file whose room is claimed now.

    So a full disk is an error here, not a crash in the memory map.
    """
    kind = np.dtype(dtype)
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    with path.open("wb") as opened:
        np.lib.format.write_array_header_1_0(opened, header)
        size = int(np.prod(shape)) * kind.itemsize
        os.posix_fallocate(opened.fileno(), 0, opened.tell() + size)
    return np.lib.format.open_memmap(path, mode="r+")


def _schema(columns: dict[str, list[Any]]) -> pa.Schema:
    is_text = bool(columns["key"]) and isinstance(columns["key"][0], str)
    types = {"index": pa.int64(), "key": pa.string() if is_text else pa.int64()}
    types |= {"tokens": pa.int32(), "truncated": pa.bool_(), "has_history": pa.bool_()}
    return pa.schema([*types.items(), ("prompt", pa.string()), ("text", pa.string())])


def _same_settings(folder: Path, settings: dict[str, Any]) -> None:
    with _locked(folder / ".lock"):
        # A finished store may have been copied without its settings; the manifest repeats them.
        file = folder / (MANIFEST if (folder / MANIFEST).is_file() else SETTINGS)
        if not file.is_file():
            write_json(file, settings)
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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
