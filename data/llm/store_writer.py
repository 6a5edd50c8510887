"""Writes a level of a knowledge store: parts that survive a kill, then their merge.

An unfinished level has, besides the files of `store`::

    settings.json                  settings, which all runs into this folder must share
    parts/part-RRR-NNNNN.parquet   vectors of some keys, written by rank RRR; whole or absent
    parts/done-RRR-of-WWW.json     counts of rank RRR of WWW, written when it has all its keys
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.io.atomic_files import atomic_path, checksums, locked, write_json
from msrec.data.io.json_files import read_json_object
from msrec.data.io.outputs import FolderKind, check_output
from msrec.data.llm.compression import fit_projection, float_chunks, moments, to_int8
from msrec.data.llm.store import (
    KEYS,
    LSA_FILE,
    MANIFEST,
    PROJECTION,
    SCALES,
    VECTORS,
    differences,
)

SETTINGS = "settings.json"
RAW_VECTORS = "raw.npy"
NEW_LEVEL = FolderKind("a knowledge store", None, (".lock", SETTINGS))
"""A level of a store that is about to be begun."""
COLUMNS = ["index", "key", "tokens", "truncated", "has_history", "prompt", "text"]
SUMMED_COUNTS = ("keys", "no_history", "left_out", "history_cut", "reused")
"""Counts of a rank's share; all others are of the whole dataset and equal on every rank."""


class StoreWriter:
    """Writer of one rank's share of a level; `settings` go into the manifest.

    Vectors are saved in parts. A run can therefore be killed at any time, and the next one, with
    any number of ranks, skips the keys that the parts hold. The last rank to finish merges them.

    Raises:
        ValueError: the folder was begun with other settings.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], *, rank: int, world_size: int
    ) -> None:
        self.folder, self.settings = folder, settings
        self.rank, self.world_size = rank, world_size
        self.parts = folder / "parts"
        self.is_complete = (folder / MANIFEST).is_file()
        folder.mkdir(parents=True, exist_ok=True)
        _check_settings(folder, settings)
        if self.is_complete:
            with locked(folder / ".lock"):  # the writer may have been killed before it did this
                shutil.rmtree(self.parts, ignore_errors=True)
        else:
            self.parts.mkdir(exist_ok=True)
        own_parts = sorted(self.parts.glob(f"part-{rank:03d}-*.parquet"))
        self._next_part = int(own_parts[-1].stem.rpartition("-")[2]) + 1 if own_parts else 0

    def done_index(self) -> np.ndarray:
        """Returns the column `index` of the parts of all ranks: int64, sorted, distinct."""
        indices = [_read_part(file, ["index"])["index"].to_numpy() for file in self._part_files()]
        return np.unique(np.concatenate(indices)) if indices else np.empty(0, np.int64)

    def write(self, rows: dict[str, list[Any]], vectors: np.ndarray) -> None:
        """Writes a part: vectors (n, H) and their `COLUMNS`, of which prompt and text may lack.

        Raises:
            ValueError: a vector has a value that is not finite; names the key.
        """
        dtype = _part_dtype(self.settings)
        stored = vectors.astype(dtype)
        is_bad = ~np.isfinite(stored).all(axis=1)
        if is_bad.any():
            key = rows["key"][int(is_bad.argmax())]
            raise ValueError(
                f"every value of a vector must be finite; the vector of {key!r} is not, as "
                f"{dtype}: use float32 for storage or for the model."
            )
        columns = {name: rows.get(name, [None] * len(stored)) for name in COLUMNS}
        flat = pa.array(stored.reshape(-1))
        table = pa.table(columns, schema=_part_schema(columns)).append_column(
            "vector", pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        )
        file = self.parts / f"part-{self.rank:03d}-{self._next_part:05d}.parquet"
        with atomic_path(file) as scratch:
            pq.write_table(table, scratch, compression="lz4", use_dictionary=False)
        self._next_part += 1

    def finish(self, counts: Mapping[str, Any]) -> bool:
        """Marks this rank's share as done, with its counts; merges the level if all shares are.

        The manifest gets the counts, and whatever else the mapping has.

        Returns whether the level is complete.
        """
        done = self.parts / f"done-{self.rank:03d}-of-{self.world_size:03d}.json"
        with locked(self.folder / ".lock"):
            if (self.folder / MANIFEST).is_file():
                return True
            write_json(done, dict(counts))
            files = sorted(self.parts.glob(f"done-*-of-{self.world_size:03d}.json"))
            advice = "Delete it: its share is encoded again."
            shares = [read_json_object(file, advice) for file in files]
            # Someone may have deleted a part of a share that was done.
            missing = sum(share["keys"] for share in shares) - len(self.done_index())
            if len(shares) < self.world_size or missing > 0:
                return False
            self._merge(shares)
        return True

    def _part_files(self) -> list[Path]:
        return sorted(self.parts.glob("part-*.parquet"))

    def _merge(self, shares: list[dict[str, Any]]) -> None:
        """Writes all files of the finished level, in the order of `index`; the manifest last.

        A kill before the manifest leaves the parts, from which the next run merges again.
        """
        files = self._part_files()
        tables = [_read_part(file, COLUMNS) for file in files]
        keys = pa.concat_tables(tables).sort_by("index") if tables else pa.table({"index": []})
        index = keys["index"].to_numpy()
        sums = {name: sum(share.get(name, 0) for share in shares) for name in SUMMED_COUNTS}
        if len(index) == 0:
            raise ValueError(f"{self.folder}: a store must have at least 1 key; got no prompt.")
        num_distinct = len(np.unique(index))
        if num_distinct < len(index) or len(index) != sums["keys"]:
            raise ValueError(
                f"{self.parts} must hold {sums['keys']} keys, each once; found {len(index)}, "
                f"{num_distinct} of them distinct: delete {self.folder} and encode again."
            )
        if keys["text"].null_count == len(keys):
            keys = keys.drop_columns("text")
        rows = [np.searchsorted(index, table["index"].to_numpy()) for table in tables]
        vector_fields = self._merge_vectors(files, rows)
        pq.write_table(keys, self.folder / KEYS)
        manifest = self.settings | shares[0] | sums
        manifest |= {name: int(keys[name].to_numpy().sum()) for name in ("tokens", "truncated")}
        manifest |= vector_fields
        possible = (KEYS, VECTORS, SCALES, PROJECTION, LSA_FILE)
        names = [name for name in possible if (self.folder / name).is_file()]
        manifest["bytes"] = {name: (self.folder / name).stat().st_size for name in names}
        manifest["crc32"] = checksums(self.folder, [self.folder / name for name in names])
        write_json(self.folder / MANIFEST, manifest)
        shutil.rmtree(self.parts)

    def _merge_vectors(self, files: list[Path], rows: list[np.ndarray]) -> dict[str, Any]:
        """Writes the vectors and returns the manifest's fields about them."""
        if self.settings["storage"] != "int8" and self.settings.get("pca") is None:
            vectors = self._gather(self.folder / VECTORS, files, rows)
            return {"hidden_dim": vectors.shape[1]} | _moment_fields(vectors, None)
        # A projection is fitted to all vectors: they go to a file first, not into memory.
        raw = self.folder / RAW_VECTORS
        try:
            return self._write_projected(self._gather(raw, files, rows))
        finally:
            raw.unlink(missing_ok=True)

    def _gather(self, path: Path, files: list[Path], rows: list[np.ndarray]) -> np.ndarray:
        """Writes the vectors of each part to their rows of one memory-mapped file."""
        width = pq.read_schema(files[0]).field("vector").type.list_size
        vectors = _new_array(path, (sum(map(len, rows)), width), _part_dtype(self.settings))
        for file, at in zip(files, rows, strict=True):
            part = _read_part(file, ["vector"])["vector"].combine_chunks()
            vectors[at] = part.values.to_numpy().reshape(-1, width)
        vectors.flush()
        return vectors

    def _write_projected(self, raw: np.ndarray) -> dict[str, Any]:
        """Standardises, projects and rounds the vectors, and saves the projection."""
        storage, dims = self.settings["storage"], self.settings.get("pca")
        projection = fit_projection(raw, dims)
        size = raw.shape[1] if dims is None else dims
        vectors, scales = _new_array(self.folder / VECTORS, (len(raw), size), storage), None
        if storage == "int8":
            scales = _new_array(self.folder / SCALES, (len(raw),), "float32")
        for at, rows in float_chunks(raw):
            if scales is None:
                vectors[at] = projection(rows)
            else:
                vectors[at], scales[at] = to_int8(projection(rows))
        vectors.flush()
        if scales is not None:
            scales.flush()
        arrays = {"mean": projection.mean, "std": projection.std}
        if projection.components is not None:
            arrays["components"] = projection.components
        np.savez(self.folder / PROJECTION, allow_pickle=False, **arrays)
        fields = {"hidden_dim": size, "raw_dim": raw.shape[1], "explained": projection.explained}
        return fields | _moment_fields(vectors, scales)


def _moment_fields(vectors: np.ndarray, scales: np.ndarray | None) -> dict[str, list[float]]:
    """Returns mean and std of the vectors as they are stored, after rounding."""
    mean, std = moments(float_chunks(vectors, scales))
    return {"mean": mean.tolist(), "std": std.tolist()}


def _part_dtype(settings: dict[str, Any]) -> str:
    """Returns the type of parts: an int8 store has float16 until all vectors are there."""
    return "float16" if settings["storage"] == "int8" else str(settings["storage"])


def _new_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """Creates a memory-mapped .npy file whose disk space is allocated."""
    # A full disk is then an error here. In a sparse file, a later write to the map would kill the
    # process with SIGBUS.
    item_type = np.dtype(dtype)
    descr = np.lib.format.dtype_to_descr(item_type)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        size = int(np.prod(shape)) * item_type.itemsize
        os.posix_fallocate(file.fileno(), 0, file.tell() + size)
    return np.lib.format.open_memmap(path, mode="r+")


def _part_schema(columns: dict[str, list[Any]]) -> pa.Schema:
    is_text = bool(columns["key"]) and isinstance(columns["key"][0], str)
    types = {"index": pa.int64(), "key": pa.string() if is_text else pa.int64()}
    types |= {"tokens": pa.int32(), "truncated": pa.bool_(), "has_history": pa.bool_()}
    return pa.schema([*types.items(), ("prompt", pa.string()), ("text", pa.string())])


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Saves the settings of a new folder; compares those of one that was begun."""
    with locked(folder / ".lock"):
        # A finished store may have been copied without its settings; the manifest repeats them.
        file = folder / (MANIFEST if (folder / MANIFEST).is_file() else SETTINGS)
        if not file.is_file():
            check_output(folder, NEW_LEVEL)
            write_json(file, settings)
            return
        saved = read_json_object(file, "Use another folder or delete this one.")
    if differing := differences(saved, settings):
        raise ValueError(
            f"{folder} must be encoded with the same settings throughout; it was begun with "
            f"{'; '.join(differing)}: use another folder or delete this one."
        )


def _read_part(file: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{file} must be a readable part; {str(error).splitlines()[0]}: delete that file, its "
            f"keys are encoded again."
        ) from None
