"""A finished knowledge store: keys, a memory-mapped matrix of vectors, a manifest.

One folder a level (`user`, `scenario`)::

    keys.parquet    index, key (int64 or string), tokens, truncated, has_history, prompt (its hash)
                    and, where the model answered, text; row i belongs to vector i
    vectors.npy     (N, H), float16, float32 or int8
    scales.npy      (N,), float32: what an int8 vector is times
    projection.npz  mean, std and components by which float vectors became those of the store, where
                    it holds int8 or principal components
    manifest.json   model, prompts, data and counts; written last, so a folder without is not done
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from msrec.data.io.atomic_files import check_files

KEYS, VECTORS, MANIFEST = "keys.parquet", "vectors.npy", "manifest.json"
SCALES, PROJECTION = "scales.npy", "projection.npz"
VERSION = 2
READABLE = (1, 2)
"""Version 1 has no hashes of prompts."""
Layer = Literal["last", "middle"] | int
"""Whose hidden states the vectors are; an integer is the number of layers that were run."""


@dataclass(frozen=True)
class KnowledgeStore:
    """One level's vectors.

    Shape:
        vectors: (N, H), float16, float32 or int8, memory-mapped; nothing is written back.
        scales: (N,), float32, with int8 vectors.
        keys: (N,), int64 or string, each once.
        mean, std: (H,), float32, of each dimension over all keys; std is 0 where all are equal.
    """

    path: Path
    manifest: dict[str, Any]
    vectors: np.ndarray
    scales: np.ndarray | None
    keys: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> "KnowledgeStore":
        """Map a store into memory and check it; `verify` also reads every file once.

        Raises:
            FileNotFoundError: there is no finished store.
            ValueError: a file is truncated, damaged or of another version; a vector is not finite.
        """
        folder = Path(path)
        manifest = _read_manifest(folder)
        _check_sizes(folder, manifest)
        if verify:
            advice = "The store is damaged: encode again."
            check_files(folder, manifest.get("crc32", {}), advice)
        vectors = _mapped(folder / VECTORS)
        scales = _mapped(folder / SCALES) if SCALES in manifest["bytes"] else None
        keys = pq.read_table(folder / KEYS, columns=["key"])["key"].to_numpy()
        shape = (manifest["keys"], manifest["hidden_dim"])
        if vectors.shape != shape or len(keys) != shape[0]:
            raise ValueError(
                f"{folder} must hold vectors of shape {shape} as its {MANIFEST} says; got "
                f"{vectors.shape} and {len(keys)} keys: encode again."
            )
        mean = np.asarray(manifest["mean"], dtype=np.float32)
        std = np.asarray(manifest["std"], dtype=np.float32)
        store = cls(folder, manifest, vectors, scales, keys, mean, std)
        if verify and "crc32" not in manifest:
            store._check_finite()  # a store from before there were checksums
        return store

    def __len__(self) -> int:
        """Number of keys."""
        return len(self.keys)

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Rows of `vectors`, int64; -1 for a key that is not there.

        Raises:
            ValueError: strings where the store has integer keys, or the other way round.
        """
        wanted = np.asarray(keys)
        if len(wanted) == 0:
            return np.empty(0, np.int64)
        is_number = np.issubdtype(wanted.dtype, np.integer)
        if is_number != np.issubdtype(self.keys.dtype, np.integer):
            raise ValueError(
                f"{self.path}: keys must be of the store's type ({self.keys.dtype}); got "
                f"{wanted.dtype}, first {wanted[0]!r}: convert the keys."
            )
        kind = self._key_type
        found = pc.index_in(pa.array(wanted, type=kind), value_set=pa.array(self.keys, type=kind))
        return np.asarray(found.fill_null(-1).to_numpy()).astype(np.int64)

    def check(self, expected: Mapping[str, Any]) -> None:
        """Compare manifest fields with what a config says.

        Raises:
            ValueError: some differ; names each, with what the store has.
        """
        differ = differences(self.manifest, expected)
        if differ:
            raise ValueError(
                f"{self.path} must be the store that the config names; the store has "
                f"{'; '.join(differ)}: encode again into another folder or mend the config."
            )

    @property
    def _key_type(self) -> pa.DataType:
        return pa.int64() if np.issubdtype(self.keys.dtype, np.integer) else pa.string()

    def _check_finite(self, rows: int = 65_536) -> None:
        if self.vectors.dtype == np.int8:
            return  # any byte is a number; the scales are checked by their sum
        for start in range(0, len(self), rows):
            bad = ~np.isfinite(self.vectors[start : start + rows]).all(axis=1)
            if bad.any():
                row = start + int(bad.argmax())
                raise ValueError(
                    f"{self.path / VECTORS}: every value must be finite; row {row} "
                    f"(key {self.keys[row]!r}) is not: delete the folder and encode again."
                )


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """One phrase for each expected field that is otherwise, or not there.

    Example:
        >>> differences({"pooling": "mean", "dtype": "float32"}, {"pooling": "last"})
        ["pooling 'mean' (expected 'last')"]
    """
    return [
        f"{name} {found.get(name)!r} (expected {value!r})"
        for name, value in expected.items()
        if found.get(name) != value
    ]


def _mapped(path: Path) -> np.ndarray:
    try:
        # "c" is private to this process: torch warns of arrays that cannot be written.
        array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} must be an array of numbers; {error} Encode again.") from None
    return array


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        begun = (folder / "parts").is_dir()
        raise FileNotFoundError(
            f"{file} must exist; the store {'is not finished' if begun else 'is not there'}: run "
            f"`msrec encode` {'again, it goes on where it stopped' if begun else 'first'}."
        )
    try:
        manifest = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} must be JSON; {error}: encode again.") from None
    if manifest.get("version") not in READABLE:
        raise ValueError(
            f"{file}: version must be at most {VERSION}; got {manifest.get('version')!r}: encode "
            "again."
        )
    return dict(manifest)


def _check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    for name, size in manifest["bytes"].items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found != size:
            raise ValueError(
                f"{folder / name} must have {size} bytes as {MANIFEST} says; got {found}: "
                f"copy it again or encode again."
            )
