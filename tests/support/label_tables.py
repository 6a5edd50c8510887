"""Plain tables with labels of several kinds, weights and impressions."""

import numpy as np
import polars as pl

from msrec.data.io.yaml_files import write_yaml

ROWS = 400
MAPPING = {
    "labels": {
        "click": "binary",
        "like": {"optional": True, "weight": "like_weight"},
        "buy": {"exists_where": "click"},
        "watch": {"kind": "regression", "clip": [0, 60]},
    },
    "weight": "weight",
    "impression": "request",
}


def raw_columns():
    rng = np.random.default_rng(0)
    click = rng.integers(2, size=ROWS)
    like = [None if missing else int(v) for missing, v in rng.integers(2, size=(ROWS, 2))]
    return {
        "user_id": rng.integers(9, size=ROWS),
        "item_id": rng.integers(7, size=ROWS),
        "scenario": rng.choice(["feed", "shop"], ROWS),
        "click": click,
        "like": like,
        "buy": [int(rng.integers(2)) if c else None for c in click],
        "watch": rng.exponential(40, ROWS),
        "weight": rng.uniform(0.5, 2, ROWS),
        "like_weight": rng.uniform(0.5, 2, ROWS),
        "request": [f"r{k // 5}" for k in range(ROWS)],
        "timestamp": np.arange(ROWS),
    }


def raw_folder(folder, mapping=MAPPING, **changes):
    folder.mkdir()
    columns = raw_columns() | changes
    pl.DataFrame(columns).write_parquet(folder / "interactions.parquet")
    pl.DataFrame({"user_id": np.arange(9)}).write_parquet(folder / "users.parquet")
    pl.DataFrame({"item_id": np.arange(7)}).write_parquet(folder / "items.parquet")
    write_yaml(folder / "tables.yaml", mapping)
    return folder
