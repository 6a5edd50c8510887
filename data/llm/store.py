"""Knowledge store: vectors of one level, with the settings that they were made with.

A level is `user`, `scenario` or `item`, and has a folder of the store. Each source of item vectors
(`llm.sources`) has a folder of the same form, `item-sources/NAME`::

    keys.parquet    index, key (int64 or string), tokens, truncated, has_history, prompt (its hash)
                    and, with pooling `generate`, text (the answer); row i belongs to vector i
    vectors.npy     (N, H), float16, float32 or int8
    scales.npy      (N,), float32: factor of each int8 vector
    projection.npz  mean, std and components that turned the model's vectors into those of the
                    store; only for int8 or principal components
    lsa.npz         fitted TF-IDF and components; only for the item source `lsa`
    manifest.json   settings, counts and checksums; written last, so a folder without it is
                    not finished
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from msrec.data.io.atomic_files import check_files
from msrec.data.io.json_files import read_json_object
from msrec.data.io.local_copies import local_copy
from msrec.data.io.parquet_files import num_rows
from msrec.data.io.paths import AnyPath, PathT, is_remote, to_path
from msrec.data.llm.compression import float_chunks
from msrec.data.llm.text.templates import load_template, template_of
from msrec.data.schema import load_schema

KEYS, VECTORS, MANIFEST = "keys.parquet", "vectors.npy", "manifest.json"
SCALES, PROJECTION, LSA_FILE = "scales.npy", "projection.npz", "lsa.npz"
LEVELS = ("user", "scenario", "item")
"""Names of the levels, in the order in which they are shown."""
ITEM_SOURCES = "item-sources"
VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 has no hashes of prompts."""

Pooling = Literal["last", "mean", "generate"]
Layer = Literal["last", "middle"] | int
"""Layer whose hidden states are read; an integer is the number of layers to run."""
Storage = Literal["float16", "float32", "int8"]


@dataclass(frozen=True)
class VectorSettings:
    """Settings that decide the vectors of a store.

    Args:
        model: a packaged model, a local folder or a Hugging Face name.
        template: a name in templates.yaml; `auto` takes the one made for the dataset.
        pooling: mean or last of the prompt's tokens, or generate an answer first.
        layer: last, middle, or the number of layers to run.
        answer_tokens: longest answer of `generate`.
        dtype: of the model: bfloat16, float32 or float16.
        max_tokens: of a prompt; a history has as many items as there is room for.
        storage: type of the stored vectors; int8 vectors are standardised first.
        pca: number of principal components to keep; None keeps the vectors.
    """

    model: str
    template: str = "auto"
    pooling: Pooling = "mean"
    layer: Layer = "last"
    answer_tokens: int = 32
    dtype: str = "bfloat16"
    max_tokens: int = 512
    storage: Storage = "float16"
    pca: int | None = None


def store_settings(dataset: AnyPath, vectors: VectorSettings) -> dict[str, Any]:
    """Returns the fields of a manifest that say how, and from which training rows, it was made."""
    schema = load_schema(dataset)
    template_name = template_of(schema.name, vectors.template)
    template = load_template(template_name)
    return {
        "dataset": schema.name,
        "split": schema.split.model_dump(mode="json"),
        "num_users": schema.num_users,
        "num_items": schema.num_items,
        "train_rows": num_rows(dataset / "train"),
        "model": vectors.model,
        "template": template_name,
        "template_version": template.version,
        "template_sha256": template.sha256,
        "pooling": vectors.pooling,
        "layer": vectors.layer,
        "answer_tokens": vectors.answer_tokens if vectors.pooling == "generate" else None,
        "dtype": vectors.dtype,
        "max_tokens": vectors.max_tokens,
        "storage": vectors.storage,
        "pca": vectors.pca,
    }


def item_source_folder(store: PathT, source: str) -> PathT:
    """Returns the folder of a source of item vectors; `/` in a model's name becomes `--`.

    Example:
        >>> str(item_source_folder(Path("store"), "org/model"))
        'store/item-sources/org--model'
    """
    return store / ITEM_SOURCES / source.strip("/").replace("/", "--")


def differences(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each expected field whose value is another one or missing.

    Example:
        >>> differences({"pooling": "mean", "dtype": "float32"}, {"pooling": "last"})
        ["pooling 'mean' (expected 'last')"]
    """
    return [
        f"{name} {actual.get(name)!r} (expected {value!r})"
        for name, value in expected.items()
        if actual.get(name) != value
    ]


@dataclass(frozen=True)
class KnowledgeStore:
    """Vectors of one finished level.

    Shape:
        vectors: (N, H), float16, float32 or int8, memory-mapped; changes are not written back.
        scales: (N,), float32; None unless the vectors are int8.
        mean, std: (H,), float32, of each dimension over all keys; std is 0 for a constant one.

    `path` is the folder on this machine; of a remote level, `copy_of` is its URL.
    """

    path: Path
    manifest: dict[str, Any]
    vectors: np.ndarray
    scales: np.ndarray | None
    mean: np.ndarray
    std: np.ndarray
    copy_of: str = ""

    @classmethod
    def open(cls, path: AnyPath | str, *, verify: bool = True) -> "KnowledgeStore":
        """Maps a level into memory and checks it; `verify` also reads every file once.

        A remote level is copied to this machine, see `local_copy`.

        Raises:
            FileNotFoundError: the level does not exist or is not finished.
            ValueError: a file is truncated, damaged or of another version; a vector is not finite.
        """
        path = to_path(path)
        folder = local_copy(path, MANIFEST)
        manifest = _read_manifest(folder)
        _check_sizes(folder, manifest)
        if verify:
            advice = "The store is damaged: encode again."
            check_files(folder, manifest.get("crc32", {}), advice)
        vectors = _mapped(folder / VECTORS)
        scales = _mapped(folder / SCALES) if SCALES in manifest["bytes"] else None
        num_keys = pq.read_metadata(folder / KEYS).num_rows
        shape = (manifest["keys"], manifest["hidden_dim"])
        if vectors.shape != shape or num_keys != shape[0]:
            raise ValueError(
                f"{folder} must hold vectors of shape {shape} as its {MANIFEST} says; got "
                f"{vectors.shape} and {num_keys} keys: encode again."
            )
        mean = np.asarray(manifest["mean"], dtype=np.float32)
        std = np.asarray(manifest["std"], dtype=np.float32)
        copy_of = str(path) if is_remote(path) else ""
        store = cls(folder, manifest, vectors, scales, mean, std, copy_of)
        if verify and "crc32" not in manifest:
            store._check_finite()  # older stores have no checksums
        return store

    def __len__(self) -> int:
        """Number of keys."""
        return len(self.vectors)

    @cached_property
    def keys(self) -> np.ndarray:
        """The key of each vector, (N,), int64 or string, each once."""
        return self._read_keys()

    def _read_keys(self) -> np.ndarray:
        keys: np.ndarray = pq.read_table(self.path / KEYS, columns=["key"])["key"].to_numpy()
        return keys

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Returns the row of each key in `vectors`, int64; -1 for an unknown key.

        Raises:
            ValueError: the keys are strings and those of the store integers, or vice versa.
        """
        wanted = np.asarray(keys)
        if len(wanted) == 0:
            return np.empty(0, np.int64)
        # Not `self.keys`: a run asks once, and should not keep the keys of a billion items.
        keys = self._read_keys()
        is_integer = np.issubdtype(wanted.dtype, np.integer)
        if is_integer != np.issubdtype(keys.dtype, np.integer):
            raise ValueError(
                f"{self.path}: keys must be of the store's type ({keys.dtype}); got "
                f"{wanted.dtype}, first {wanted[0]!r}: convert the keys."
            )
        key_type = pa.int64() if is_integer else pa.string()
        known = pa.array(keys, type=key_type)
        rows = pc.index_in(pa.array(wanted, type=key_type), value_set=known)
        return np.asarray(rows.fill_null(-1).to_numpy()).astype(np.int64)

    def check(self, expected: Mapping[str, Any]) -> None:
        """Compares fields of the manifest with those of a config.

        Raises:
            ValueError: fields differ; names each with the store's value.
        """
        differing = differences(self.manifest, expected)
        if differing:
            raise ValueError(
                f"{self.path} must be the store that the config names; the store has "
                f"{'; '.join(differing)}: encode again into another folder or correct the config."
            )

    def require_fitted(self, file: Path) -> None:
        """Refuses to fit what all readers of a remote store must share.

        Raises:
            FileNotFoundError: the level is remote, and lacks the file.
        """
        if self.copy_of and not file.is_file():
            raise FileNotFoundError(
                f"{self.copy_of}/{file.name} must exist, so that all machines read the same "
                "vectors; it does not. Run `msrec encode` with the config of this run, which "
                "writes it."
            )

    def _check_finite(self) -> None:
        for at, rows in float_chunks(self.vectors):
            is_bad = ~np.isfinite(rows).all(axis=1)
            if is_bad.any():
                row = at.start + int(is_bad.argmax())
                raise ValueError(
                    f"{self.path / VECTORS}: every value must be finite; row {row} "
                    f"(key {self.keys[row]!r}) is not: delete the folder and encode again."
                )


def _mapped(path: Path) -> np.ndarray:
    try:
        # Mode "c" keeps changes in this process. Read-only maps would make torch warn.
        array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} must be an array of numbers; {error} Encode again.") from None
    return array


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        state, advice = "is not there", "first"
        if (folder / "parts").is_dir():
            state, advice = "is not finished", "again, it goes on where it stopped"
        raise FileNotFoundError(
            f"{file} must exist; the store {state}: run `msrec encode` {advice}."
        )
    manifest = read_json_object(file, "Encode again.")
    if manifest.get("version") not in READABLE_VERSIONS:
        raise ValueError(
            f"{file}: version must be at most {VERSION}; got {manifest.get('version')!r}: encode "
            "again."
        )
    return manifest


def _check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    for name, size in manifest["bytes"].items():
        actual = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if actual != size:
            raise ValueError(
                f"{folder / name} must have {size} bytes as {MANIFEST} says; got {actual}: "
                f"copy it again or encode again."
            )
