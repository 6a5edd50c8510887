"""Vectors of an earlier store, taken again for prompts that have not changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from msrec.data.features.value_index import SortedIndex
from msrec.data.io.atomic_files import atomic_path
from msrec.data.io.mapped_tables import read_mapped, write_mapped
from msrec.data.io.paths import AnyPath
from msrec.data.llm.store import KEYS, KnowledgeStore, differences

_STATE_SETTINGS = ("model_sha256", "template_sha256", "pooling", "layer", "dtype", "max_tokens")
REUSE_SETTINGS = (*_STATE_SETTINGS, "answer_tokens", "storage", "pca", "level", "version", "lsa")
"""Settings that must be equal for a vector of an earlier store to be reused."""
INDEX_FILE, KEYS_FILE = "index.arrow", "keys.arrow"


@dataclass(frozen=True)
class EarlierStore:
    """A level of an earlier store, with an index of its keys in a folder that workers map.

    Args:
        level: the level.
        folder: has the index and the other columns of the keys.
    """

    level: AnyPath
    folder: Path

    def prepare(self, settings: dict[str, Any]) -> None:
        """Checks the level against the settings of the new one, and writes the index.

        Raises:
            ValueError: the level has other settings, or is damaged.
        """
        store = KnowledgeStore.open(self.level)
        expected = {name: settings.get(name) for name in REUSE_SETTINGS}
        differing = differences(store.manifest, expected)
        # Parts hold the model's own vectors, which cannot be restored from projected ones.
        if expected["storage"] == "int8" or expected["pca"] is not None:
            differing = [
                f"storage {expected['storage']!r}, pca {expected['pca']!r}: not the model's vectors"
            ]
        if differing:
            raise ValueError(
                f"{self.level}: an earlier store must have vectors made the same way; it has "
                f"{'; '.join(differing)}. Leave llm.previous out."
            )
        keys = pl.read_parquet(store.path / KEYS, glob=False)
        names = [name for name in ("prompt", "tokens", "truncated", "text") if name in keys.columns]
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / INDEX_FILE) as scratch:
            SortedIndex.write(scratch, keys["key"])
        with atomic_path(self.folder / KEYS_FILE) as scratch:
            write_mapped(scratch, keys.select(names))

    def unchanged(self, prompts: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray]:
        """Returns the prompts that the store has, with the columns of its keys, and their vectors.

        Args:
            prompts: columns key, prompt (its hash) and others, which are kept.

        Shape:
            vectors: (N, H).
        """
        positions = SortedIndex([self.folder / INDEX_FILE]).positions(prompts["key"].to_arrow())
        found = prompts.with_columns(position=positions).filter(pl.col("position") >= 0)
        stored = read_mapped(self.folder / KEYS_FILE)[found["position"]]
        is_same = stored["prompt"] == found["prompt"]
        same = found.filter(is_same)
        columns = stored.filter(is_same).drop("prompt")
        store = KnowledgeStore.open(self.level, verify=False)
        vectors = np.asarray(store.vectors[same["position"].to_numpy()])
        return same.drop("position").hstack(columns), vectors
