"""Raw tables and their rows as one table."""

import numpy as np
import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, Feature, RawTables
from msrec.data.schema import Scenario

FEATURES = (
    *ID_FEATURES,
    Feature("age", "user"),
    Feature("tags", "item", "multi"),
    Feature("words", "item", "multi"),
    Feature("query", "interaction"),
    Feature("price", "interaction", "dense"),
)


def raw_tables(rows=400):
    """Interactions of 30 users and 20 items; the newest rows have users that training never saw."""
    rng = np.random.default_rng(0)
    user = np.sort(rng.integers(30, size=rows))
    item = rng.integers(20, size=rows)
    price = rng.normal(size=rows)
    odds = 1.5 * price + (item % 2 - 0.5) + (user % 3 - 1)
    tags = [[f"t{k}" for k in range(i % 4)] or None for i in range(20)]
    return RawTables(
        name="app",
        description="an app",
        interactions=pl.DataFrame(
            {
                "user_key": [f"u{u}" for u in user],
                "item_key": item * 10,
                "scenario": rng.integers(2, size=rows),
                "query": [None if q == 0 else f"q{q}" for q in rng.integers(9, size=rows)],
                "price": price,
                "label": (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(int),
                "time": np.arange(rows),
            }
        ),
        users=pl.DataFrame(
            {"user_key": [f"u{u}" for u in range(30)], "age": [u // 5 or None for u in range(30)]}
        ),
        items=pl.DataFrame(
            {"item_key": np.arange(20) * 10, "tags": tags, "words": tags},
            schema_overrides={"tags": pl.List(pl.String), "words": pl.List(pl.String)},
        ),
        scenarios=[Scenario(name=name, description=name) for name in ("feed", "shop")],
        features=FEATURES,
        timestamp="time",
    )


def joined(raw):
    """The raw rows: interactions with what their users and items are."""
    frame = raw.interactions.join(raw.users, "user_key", maintain_order="left")
    return frame.join(raw.items, "item_key", maintain_order="left")
