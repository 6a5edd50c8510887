"""Counts the users, items or scenarios of a dataset that have a vector in a knowledge store."""

import numpy as np

from msrec.data.io.parquet_files import parquet_files, read_parquet, scan_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.llm.store import KnowledgeStore
from msrec.data.schema import SPLITS, load_schema


def coverage(store: KnowledgeStore, dataset: AnyPath) -> list[str]:
    """Returns the covered users, items or scenarios, and the covered rows of each split, as text.

    The level of the store decides what is counted: `39 of 40 users`, `97.5% of the train rows`.
    """
    level, schema = str(store.manifest["level"]), load_schema(dataset)
    if level == "scenario":
        names = np.array([scenario.name for scenario in schema.scenarios])
        has_vector = store.rows(names) >= 0
        return [f"{int(has_vector.sum())} of {len(has_vector)} scenarios"]
    key = f"{level}_key"
    keys = read_parquet(dataset / f"{level}s.parquet", [key])[key]
    has_vector = store.rows(keys.to_numpy()) >= 0
    counts = [f"{int(has_vector.sum()):,} of {len(has_vector):,} {level}s"]
    for split in SPLITS:
        rows = scan_parquet(parquet_files(dataset / split)).select(level).collect().to_series()
        counts.append(f"{has_vector[rows.to_numpy()].mean():.1%} of the {split} rows")
    return counts
