"""How much of a data set a knowledge store knows."""

import numpy as np

from msrec.data.io.parquet_files import parquet_files, read_parquet, scan_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.llm.store import KnowledgeStore
from msrec.data.schema import SPLITS, load_schema


def coverage(store: KnowledgeStore, dataset: AnyPath) -> list[str]:
    """How many users, items or scenarios of a data set have a vector; and how many rows."""
    level, schema = str(store.manifest["level"]), load_schema(dataset)
    if level == "scenario":
        names = np.array([scenario.name for scenario in schema.scenarios])
        has = store.rows(names) >= 0
        return [f"{int(has.sum())} of {len(has)} scenarios"]
    key = f"{level}_key"
    keys = read_parquet(dataset / f"{level}s.parquet", [key])[key]
    has = store.rows(keys.to_numpy()) >= 0
    told = [f"{int(has.sum()):,} of {len(has):,} {level}s"]
    for split in SPLITS:
        rows = scan_parquet(parquet_files(dataset / split)).select(level).collect().to_series()
        told.append(f"{has[rows.to_numpy()].mean():.1%} of the {split} rows")
    return told
