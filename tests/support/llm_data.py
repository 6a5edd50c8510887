"""Tiny dataset folder, random model and part of a store, for the tests of the frozen LLM."""

import numpy as np
import polars as pl

from msrec.data.schema import Scenario, Schema, SparseFeature, SplitRecord, TextFields, save_schema

ITEMS = ["Red Shoes", "Blue Hat", "Green Scarf", "Gold Ring", "Iron Pan", "Future Lamp"]
KINDS = ["shoes|red", "hats", None, "rings", "pans", "lamps"]


def rows_frame(rows):
    """Returns (user, item, scenario, click, time) tuples as an interactions frame."""
    names = {"user": pl.Int32, "item": pl.Int32, "scenario": pl.Int32}
    names |= {"click": pl.Float32, "time": pl.Int64}
    return pl.DataFrame(rows, schema=names, orient="row")


def write_dataset(
    folder,
    train,
    test=(),
    *,
    users=("ann", "bob", "cem"),
    ages=None,
    titles=ITEMS,
    kinds=KINDS,
    more_items=None,
    more_users=None,
):
    """Writes a dataset with two scenarios; `ages` are an attribute of the users.

    `more_items` and `more_users` are further attributes, column -> values.
    """
    for split, rows in (("train", train), ("valid", test), ("test", test)):
        (folder / split).mkdir(parents=True)
        rows_frame(list(rows)).write_parquet(folder / split / "part-0.parquet")
    people = {"user_key": list(users)}
    if ages is not None:
        people["age_name"] = pl.Series(ages, dtype=pl.String)
    people |= more_users or {}
    pl.DataFrame(people).write_parquet(folder / "users.parquet")
    items = {"item_key": range(len(titles)), "title": titles, "kind": kinds[: len(titles)]}
    items |= more_items or {}
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    schema = Schema(
        name="shop",
        description="A shop for everyday things.",
        scenarios=[
            Scenario(name="search", description="the user types what they want"),
            Scenario(name="feed", description="the app proposes things"),
        ],
        tables={"user_id": len(users) + 1},
        sparse=[SparseFeature(name="user_id", table="user_id")],
        labels=["click"],
        timestamp="time",
        text=TextFields(
            item_title="title",
            item_attributes=["kind", *(more_items or {})],
            user_attributes=[*([] if ages is None else ["age_name"]), *(more_users or {})],
        ),
        split=SplitRecord(method="time", train_until=100),
        num_users=len(users),
        num_items=len(titles),
    )
    save_schema(schema, folder)
    return folder


def part_columns(index, keys, **changes):
    """Returns the columns of a part of a store, without hashes of prompts and answers."""
    size = len(keys)
    columns = {"index": list(index), "key": list(keys), "tokens": [3] * size}
    columns |= {"truncated": [False] * size, "has_history": [True] * size}
    return columns | changes


def write_model(folder, seed=0, tied=True):
    """Writes a random Llama of two layers and a tokenizer with one token for each byte."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    from msrec.tools.bench.gpu.encoding import save_byte_tokenizer

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        initializer_range=0.5,
        tie_word_embeddings=tied,  # the embeddings are the LM head
    )
    LlamaModel(config).save_pretrained(folder)
    save_byte_tokenizer(folder)
    return folder


USERS = [f"u{number}" for number in range(12)]


TRAIN = [
    (user, (user * 5 + turn) % len(ITEMS), turn % 2, float(turn % 3 > 0), 10 * turn + user)
    for user in range(11)
    for turn in range(1 + user % 5)
]


def write_source(store, keys, vectors, name="lsa", settings=None):
    """Writes a source of item vectors; `settings` are those that a run compares."""
    import numpy as np

    from msrec.data.llm.store import item_source_folder
    from msrec.data.llm.store_writer import StoreWriter

    settings = settings or {"version": 2, "model": name, "storage": "float16", "level": "item"}
    writer = StoreWriter(item_source_folder(store, name), settings)
    writer.write(part_columns(range(len(keys)), keys), np.asarray(vectors, np.float32))
    writer.finish({"keys": len(keys), "no_history": 0, "left_out": 0})
    writer.merge()
    return store


def stop_after(batches):
    """Returns a progress callback that ends the run as a kill would, after some batches."""
    seen = []

    def on_progress(progress):
        seen.append(progress.done)
        if len(seen) > batches:
            raise KeyboardInterrupt

    return on_progress


def whole(items):
    """The vectors of all items of `ItemVectors`, float16."""
    return items.rows(np.arange(len(items)))
