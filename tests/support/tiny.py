"""A small valid dataset folder, written straight from the contract, that tests may then break."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.schema import (
    Scenario,
    Schema,
    SparseFeature,
    SplitRecord,
    TextFields,
    load_schema,
    save_schema,
)

TABLES = {"user_id": 41, "item_id": 61, "genre": 7}


def tiny_schema(**changes):
    values = {
        "name": "tiny",
        "description": "a film app",
        "scenarios": [
            Scenario(name=name, description=f"the {name} page")
            for name in ("search", "feed", "shop")
        ],
        "tables": TABLES,
        "sparse": [
            SparseFeature(name="user_id", table="user_id"),
            SparseFeature(name="item_id", table="item_id"),
            SparseFeature(name="genres", table="genre", multi=True),
        ],
        "dense": ["price"],
        "labels": ["label"],
        "timestamp": "timestamp",
        "text": TextFields(item_title="title", item_attributes=["genre_names"]),
        "split": SplitRecord(method="random", seed=0, fractions=[0.8, 0.1, 0.1]),
        "num_users": 40,
        "num_items": 60,
    }
    return Schema(**(values | changes))


def tiny_rows(rows, seed=0):
    """A split's table; clicks follow the user's and item's parity, something to learn."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(40, size=rows), rng.integers(60, size=rows)
    scenario = rng.integers(3, size=rows)
    genres = [rng.integers(1, 7, size=size).tolist() for size in rng.integers(0, 4, size=rows)]
    odds = 1.5 * ((user % 2 == item % 2) - 0.5) + 0.4 * (scenario - 1)
    label = rng.random(rows) < 1 / (1 + np.exp(-odds))
    return pa.table(
        {
            "user": pa.array(user, pa.int32()),
            "item": pa.array(item, pa.int32()),
            "scenario": pa.array(scenario, pa.int32()),
            "user_id": pa.array(user + 1, pa.int32()),
            "item_id": pa.array(item + 1, pa.int32()),
            "genres": pa.array(genres, pa.list_(pa.int32())),
            "price": pa.array(rng.normal(size=rows), pa.float32()),
            "label": pa.array(label, pa.float32()),
            "timestamp": pa.array(np.arange(rows), pa.int64()),
        }
    )


def tiny_dataset(folder, rows=2000, valid_rows=400, group_rows=96, **schema):
    """Write the folder, the training split in two files of several row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"train": rows, "valid": valid_rows, "test": valid_rows}
    for seed, (split, size) in enumerate(sizes.items()):
        table = tiny_rows(size, seed)
        (folder / split).mkdir(exist_ok=True)
        cut = size // 3
        for number, part in enumerate((table.slice(0, cut), table.slice(cut))):
            path = folder / split / f"part-{number:05d}.parquet"
            pq.write_table(part, path, row_group_size=group_rows)
    users = {"user_key": [f"u{i}" for i in range(40)]}
    items = {
        "item_key": [f"i{i}" for i in range(60)],
        "title": [f"Film number {i}" for i in range(60)],
        "genre_names": ["drama" if i % 2 else "comedy" for i in range(60)],
    }
    pq.write_table(pa.table(users), folder / "users.parquet")
    pq.write_table(pa.table(items), folder / "items.parquet")
    save_schema(tiny_schema(**schema), folder)
    return folder


def replace_column(path, name, values):
    """Break one column of a Parquet file; None drops it."""
    table = pq.read_table(path)
    place = table.column_names.index(name)
    table = table.remove_column(place)
    if values is not None:
        table = table.append_column(name, values)
    pq.write_table(table, path, row_group_size=96)


def tiny_store(dataset, store, dim=12, seed=0, llm=None, **changes):
    """All levels of a knowledge store with made-up vectors, for all keys but the last user's."""
    from msrec.data.llm.store import VERSION, VectorSettings, store_settings
    from msrec.data.llm.store_writer import StoreWriter
    from msrec.launch.config.llm_section import LLMConfig

    llm = llm or LLMConfig()
    settings = store_settings(dataset, VectorSettings(**llm.encoding)) | {
        "version": VERSION,
        "model_sha256": "0" * 64,
    }
    users, items = (
        pq.read_table(dataset / f"{side}s.parquet")[f"{side}_key"].to_pylist()
        for side in ("user", "item")
    )
    names_of = [scenario.name for scenario in load_schema(dataset).scenarios]
    keys = {"user": users[:-1], "item": items, "scenario": names_of}
    rng = np.random.default_rng(seed)
    for level, names in keys.items():
        writer = StoreWriter(store / level, settings | {"level": level} | changes)
        rows = {
            "index": list(range(len(names))),
            "key": names,
            "tokens": [5] * len(names),
            "truncated": [False] * len(names),
            "has_history": [True] * len(names),
        }
        writer.write(rows, rng.normal(size=(len(names), dim)).astype(np.float32))
        writer.finish({"keys": len(names), "no_history": 0, "left_out": 0})
        writer.merge()
    return store
