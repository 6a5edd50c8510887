"""A copy of a tiny dataset where all ids have other numbers."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tiny import replace_column, tiny_schema

from msrec.data.features.vocabulary import VOCABULARIES
from msrec.data.schema import Scenario, save_schema

SIZES = {"user_id": 40, "item_id": 60, "genres": 6}


def save_values(folder, **changes):
    """Vocabularies: value i has row i + 1."""
    (folder / VOCABULARIES).mkdir(exist_ok=True)
    for name, size in SIZES.items():
        values = changes.get(name, [f"{name} {at}" for at in range(size)])
        pq.write_table(pa.table({"value": values}), folder / VOCABULARIES / f"{name}.parquet")
    return folder


def renumbered(folder, out, seed=1):
    """The same rows where users, items, ids and scenarios have other numbers."""
    shutil.copytree(folder, out)
    rng = np.random.default_rng(seed)
    rows = {name: rng.permutation(size) for name, size in SIZES.items()}  # old place -> new place
    rows["scenario"] = np.array([2, 0, 1])
    rows["user"], rows["item"] = rng.permutation(40), rng.permutation(60)
    for path in out.glob("*/part-*.parquet"):
        table = pq.read_table(path)
        for name, place in rows.items():
            column = table[name].combine_chunks()
            shift = 1 if name in SIZES else 0
            flat = column.flatten() if name == "genres" else column
            moved = pa.array(place[flat.to_numpy() - shift] + shift, pa.int32())
            if name == "genres":
                moved = pa.ListArray.from_arrays(column.offsets, moved)
            replace_column(path, name, moved)
    values = {}
    for name, size in SIZES.items():
        values[name] = [f"{name} {at}" for at in np.argsort(rows[name])[:size]]
    save_values(out, **values)
    for side, key in (("user", "u"), ("item", "i")):
        keys = [f"{key}{at}" for at in np.argsort(rows[side])]
        replace_column(out / f"{side}s.parquet", f"{side}_key", pa.array(keys))
    names = np.array(["search", "feed", "shop"])[np.argsort(rows["scenario"])]
    scenarios = [Scenario(name=name, description=f"the {name} page") for name in names]
    save_schema(tiny_schema(scenarios=scenarios, name="next day"), out)
    return out
