"""Writes a level of a knowledge store: blocks of keys in parts that survive a kill, then a merge.

An unfinished level has, besides the files of `store`::

    settings.json                      settings, which all runs into this folder must share
    parts/BBBBBB/part-NNNNN.parquet    vectors of some keys of block B; whole or absent
    parts/BBBBBB/done.json             counts of block B, written when it has all its keys
"""

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
"""Counts of a block; all others are of the whole dataset and equal in every block."""
WORK, DONE = "work", "done.json"
"""Field of a block's counts that is not for the manifest, and their file."""
BLOCKS, MAX_BLOCK = 64, 8192
"""Blocks of a level, unless they would have more keys than that, or fewer than `MIN_BLOCK`. With
other numbers, parts that an older version has begun must be refused."""
MIN_BLOCK = {"user": 256, "scenario": 256, "item": 2048}
"""Texts of items are short: a model encodes 256 of them 5 to 10 % slower than 2,048 together."""


class Block(NamedTuple):
    """Keys [start, stop) of a level, by their position in the dataset, and the block's number."""

    number: int
    start: int
    stop: int


def blocks_of(level: str, num_keys: int) -> list[Block]:
    """Divides the users, scenarios or items of a level into blocks.

    They do not depend on the number of workers, and neither do the vectors then: the rounding of a
    vector may differ with the prompts that are encoded together with it.

    Example:
        >>> [len(blocks_of("user", keys)) for keys in (1, 256, 300, 10**5, 10**7)]
        [1, 1, 2, 64, 1221]
        >>> blocks_of("user", 300)
        [Block(number=0, start=0, stop=150), Block(number=1, start=150, stop=300)]
    """
    size = min(max(-(-num_keys // BLOCKS), MIN_BLOCK[level]), MAX_BLOCK)
    count = max(-(-num_keys // size), 1)
    ends = [num_keys * number // count for number in range(count + 1)]
    return [Block(number, *pair) for number, pair in enumerate(itertools.pairwise(ends))]


class StoreWriter:
    """Writer of one block of a level, and of the finished level; `settings` go into the manifest.

    Vectors are saved in parts. A run can therefore be killed at any time, and the next one skips
    the keys that the parts hold. When all blocks are done, one process merges them.

    Raises:
        ValueError: the folder was begun with other settings, or by an older version.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], block: int = 0) -> None:
        self.folder, self.settings, self.block = folder, settings, block
        self.parts = folder / "parts"
        self.is_complete = (folder / MANIFEST).is_file()
        folder.mkdir(parents=True, exist_ok=True)
        _check_settings(folder, settings)
        if self.is_complete:
            with locked(folder / ".lock"):  # the writer may have been killed before it did this
                shutil.rmtree(self.parts, ignore_errors=True)
        else:
            self.parts.mkdir(exist_ok=True)
            _refuse_old_parts(self.parts)
            self._block_folder(block).mkdir(exist_ok=True)
        own_parts = self._part_files(block)
        self._next_part = int(own_parts[-1].stem.rpartition("-")[2]) + 1 if own_parts else 0

    def done_blocks(self) -> set[int]:
        """Returns the numbers of the blocks that are done."""
        return {int(path.parent.name) for path in self.parts.glob(f"*/{DONE}")}

    def done_index(self) -> np.ndarray:
        """Returns the column `index` of the parts of the block: int64, sorted, distinct."""
        files = self._part_files(self.block)
        indices = [_read_part(file, ["index"])["index"].to_numpy() for file in files]
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
        file = self._block_folder(self.block) / f"part-{self._next_part:05d}.parquet"
        with atomic_path(file) as scratch:
            pq.write_table(table, scratch, compression="lz4", use_dictionary=False)
        self._next_part += 1

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Marks the block as done, with its counts."""
        write_json(self._block_folder(self.block) / DONE, dict(counts))

    def counts(self, block: int) -> dict[str, Any]:
        """Returns the counts of a block that is done."""
        advice = "Delete it: its block is encoded again."
        return read_json_object(self._block_folder(block) / DONE, advice)

    def merge(self, blocks: int = 1) -> None:
        """Writes all files of the finished level, in the order of `index`; the manifest last.

        One block is in memory at a time. A kill before the manifest leaves the parts, from which
        the next run merges again.

        Args:
            blocks: number of blocks, which must be done.

        Raises:
            ValueError: there is no key, or a block has not the keys that it counted.
        """
        done = [self.counts(block) for block in range(blocks)]
        sums = {name: sum(counts.get(name, 0) for counts in done) for name in SUMMED_COUNTS}
        if sums["keys"] == 0:
            raise ValueError(f"{self.folder}: a store must have at least 1 key; got no prompt.")
        sums |= dict.fromkeys(("tokens", "truncated"), 0)
        vector_fields = self._merge_vectors([counts["keys"] for counts in done], sums)
        manifest = self.settings | done[0] | sums | vector_fields
        manifest.pop(WORK, None)
        possible = (KEYS, VECTORS, SCALES, PROJECTION, LSA_FILE)
        names = [name for name in possible if (self.folder / name).is_file()]
        manifest["bytes"] = {name: (self.folder / name).stat().st_size for name in names}
        manifest["crc32"] = checksums(self.folder, [self.folder / name for name in names])
        write_json(self.folder / MANIFEST, manifest)
        shutil.rmtree(self.parts)

    def _block_folder(self, block: int) -> Path:
        return self.parts / f"{block:06d}"

    def _part_files(self, block: int) -> list[Path]:
        return sorted(self._block_folder(block).glob("part-*.parquet"))

    def _blocks(self, sizes: Sequence[int]) -> Iterator[pa.Table]:
        """Yields the rows of each block, by index.

        Args:
            sizes: number of keys of each block.

        Raises:
            ValueError: a block has other keys.
        """
        for block, size in enumerate(sizes):
            files = self._part_files(block)
            tables = [_read_part(file, [*COLUMNS, "vector"]) for file in files]
            if not tables and not size:
                continue
            rows = pa.concat_tables(tables) if tables else pa.table({"index": []})
            rows = rows.sort_by("index")
            num_distinct = len(np.unique(rows["index"].to_numpy()))
            if num_distinct < len(rows) or len(rows) != size:
                (self._block_folder(block) / DONE).unlink()  # the next run encodes what is missing
                raise ValueError(
                    f"{self._block_folder(block)} must hold {size} keys, each once; found "
                    f"{len(rows)}, {num_distinct} of them distinct. The same command encodes those "
                    "that are missing; delete the folder if keys are there twice."
                )
            yield rows

    def _merge_vectors(self, sizes: Sequence[int], sums: dict[str, Any]) -> dict[str, Any]:
        """Writes keys and vectors and returns the manifest's fields about the vectors."""
        if self.settings["storage"] != "int8" and self.settings.get("pca") is None:
            vectors = self._gather(self.folder / VECTORS, sizes, sums)
            return {"hidden_dim": vectors.shape[1]} | _moment_fields(vectors, None)
        # A projection is fitted to all vectors: they go to a file first, not into memory.
        raw = self.folder / RAW_VECTORS
        try:
            return self._write_projected(self._gather(raw, sizes, sums))
        finally:
            raw.unlink(missing_ok=True)

    def _gather(self, path: Path, sizes: Sequence[int], sums: dict[str, Any]) -> np.ndarray:
        """Writes keys and vectors of the blocks one after another; adds to the sums of columns."""
        vectors, keys, start = None, None, 0
        try:
            for rows in self._blocks(sizes):
                column = rows["vector"].combine_chunks()
                width = column.type.list_size
                if vectors is None:
                    vectors = _new_array(path, (sum(sizes), width), _part_dtype(self.settings))
                vectors[start : start + len(rows)] = column.values.to_numpy().reshape(-1, width)
                start += len(rows)
                table = rows.drop_columns("vector")
                if self.settings.get("pooling") != "generate":
                    table = table.drop_columns("text")
                keys = keys or pq.ParquetWriter(self.folder / KEYS, table.schema)
                keys.write_table(table)
                for name in ("tokens", "truncated"):
                    sums[name] += int(rows[name].to_numpy().sum())
        finally:
            if keys is not None:
                keys.close()
        assert vectors is not None
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


def _refuse_old_parts(parts: Path) -> None:
    if old := sorted(parts.glob("done-*-of-*.json")) or sorted(parts.glob("part-*.parquet")):
        raise ValueError(
            f"{old[0]} must be of this version of msrec; an older one wrote it. Finish the store "
            f"with that version, or delete {parts} and encode again."
        )


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
