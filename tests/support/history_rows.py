"""A tiny dataset with equal timestamps, the histories of a batch, and a slow search for them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tiny import replace_column, tiny_dataset

TIMES = 40
"""Distinct timestamps of 40 users with about 70 rows each: most rows share their time with one."""


def with_ties(folder, **schema):
    dataset = tiny_dataset(folder, **schema)
    rng = np.random.default_rng(3)
    for path in sorted(dataset.glob("*/part-*.parquet")):
        times = rng.integers(TIMES, size=pq.read_metadata(path).num_rows)
        replace_column(path, "timestamp", pa.array(times, pa.int64()))
    return dataset


def rows_of(dataset, split):
    paths = sorted((dataset / split).glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def histories(batch):
    """Row id -> its events as (item, scenario, label, time), oldest first."""
    events = batch.sequence
    bags, places = events.scenario.shape
    distinct = events.items.values()
    assert events.items.lengths().tolist() == [1] * len(distinct) + [0]
    assert (distinct.diff() > 0).all()
    is_event = events.events < len(distinct)
    assert (is_event == (events.scenario >= 0)).all()
    item = torch.cat([distinct, distinct[:1]])[events.events]
    columns = (item, events.scenario, events.label, events.time)
    rows = [
        list(zip(*(column[bag][is_event[bag]].tolist() for column in columns), strict=True))
        for bag in range(bags)
    ]
    assert all(is_event[bag, places - len(row) :].all() for bag, row in enumerate(rows))
    return {
        row: rows[bag] for row, bag in zip(batch.row_id.tolist(), events.bag.tolist(), strict=True)
    }


def slow_history(row, events, max_len):
    """The rule, one event after another; `events` are in the order of the files."""
    seen = [e for e in events if e["user"] == row["user"] and e["timestamp"] < row["timestamp"]]
    seen.sort(key=lambda event: event["timestamp"])  # stable: ties keep the order of the files
    return [
        (event["item"], event["scenario"], event["label"], event["timestamp"])
        for event in seen[-max_len:]
    ]
