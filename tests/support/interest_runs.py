"""A raw data set with histories and two sources of item vectors, for runs with interest blocks."""

from dataclasses import replace

import numpy as np
import polars as pl
from llm_data import write_source
from raw_rows import joined, raw_tables

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.split import SplitChoice
from msrec.data.features.hashed_values import Hashed
from msrec.data.histories.build import build_histories
from msrec.data.llm.item_source.settings import source_settings
from msrec.data.llm.store import VERSION, VectorSettings
from msrec.data.schema import TextFields
from msrec.launch.config.llm_section import LLMConfig
from msrec.launch.config.run_config import load_config

SOURCES = {"made": 12, "org/other": 9}
"""Source -> size of its vectors."""
ITEM_DIM = 8
MAX_LEN = 6
INTEREST = [
    *("interest.enabled=true", "interest.rank=4", f"sequence.max_len={MAX_LEN}"),
    *(f"llm.sources=[{','.join(SOURCES)}]", f"llm.item_dim={ITEM_DIM}"),
]


def interest_dataset(folder, events="all"):
    """Writes the dataset; its last item has no vector of the first source. Returns raw rows."""
    raw = raw_tables(rows=3000)
    titles = [f"Item {number}" for number in range(20)]
    items = raw.items.with_columns(title=pl.Series(titles))
    raw = replace(raw, items=items, text=TextFields(item_title="title"))
    tables = {"query": Hashed(50), "words": Hashed(40, 2)}
    write_dataset(raw, folder, SplitChoice("time", fractions=(0.7, 0.1, 0.2)), table_kinds=tables)
    build_histories(folder, events=events)
    return joined(raw)


def made_sources(dataset, store):
    """Writes a store with random vectors of each of `SOURCES`."""
    keys = list(range(0, 200, 10))
    rng = np.random.default_rng(0)
    for source, dim in SOURCES.items():
        settings = source_settings(dataset, source, VectorSettings(**LLMConfig().encoding))
        settings |= {"version": VERSION, "model_sha256": "0" * 64}
        own = keys[:-1] if source == "made" else keys
        write_source(store, own, rng.normal(size=(len(own), dim)), source, settings)
    return store


def interest_root(root):
    """Writes the dataset `root/data` and the store `root/store`. Returns raw rows."""
    raw = interest_dataset(root / "data")
    made_sources(root / "data", root / "store")
    return raw


def interest_config(root, name, *options, protocol="stream"):
    """Returns the config of a run on `root/data` with the store `root/store`."""
    return load_config(
        None,
        [
            *(f"dataset={root}/data", f"run_root={root}/runs", f"run_id={name}"),
            *(f"llm.store={root}/store", "trainer.global_batch=96", "trainer.epochs=2"),
            *("embeddings.dim=8", "embeddings.lr=0.05", f"sequence.protocol={protocol}"),
            *INTEREST,
            *options,
        ],
    )
