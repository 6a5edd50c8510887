"""Random raw tables of any size for measurements of conversions."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

FILE_ROWS = 1_000_000
MAPPING = """\
interaction: {query: sparse, tags: multi, price: dense}
user: {age: sparse}
item: {shop: sparse}
timestamp_unit: s
text: {}
"""


def write_raw_rows(folder: Path, rows: int) -> None:
    """Writes tables with a user for each 20 rows, an item for 100, and a string query for 50.

    Popular values take most of the rows. Users are integers, items and queries are strings, and
    each row has a list of two tags.
    """
    (folder / "interactions").mkdir(parents=True)
    (folder / "tables.yaml").write_text(MAPPING)
    users, items, queries = (max(rows // part, 1000) for part in (20, 100, 50))
    ages = {"user_id": _user_keys(np.arange(users)), "age": np.arange(users) % 80}
    pl.DataFrame(ages).write_parquet(folder / "users.parquet")
    shops = {"item_id": pl.Series(np.arange(items)).cast(pl.String), "shop": np.arange(items) // 50}
    pl.DataFrame(shops).write_parquet(folder / "items.parquet")
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        frame = _rows(np.random.default_rng(number), min(FILE_ROWS, rows - start), start, users)
        sizes = {"item_id": items, "query": queries}
        rng = np.random.default_rng([number, 1])
        strings = {
            name: pl.Series(_skewed(rng, len(frame), size)).cast(pl.String)
            for name, size in sizes.items()
        }
        path = folder / "interactions" / f"part-{number:05d}.parquet"
        frame.with_columns(**strings).write_parquet(path, compression="lz4")


def _rows(rng: np.random.Generator, rows: int, start: int, users: int) -> pl.DataFrame:
    tags = pl.DataFrame({name: _skewed(rng, rows, 1000) for name in "ab"})
    return pl.DataFrame(
        {
            "user_id": _user_keys(_skewed(rng, rows, users)),
            "scenario": rng.integers(0, 3, rows, dtype=np.int8),
            "tags": tags.select(pl.concat_list("a", "b")).to_series(),
            "timestamp": start + rng.integers(0, 5 * FILE_ROWS, rows),
            "price": rng.random(rows, dtype=np.float32),
            "label": (rng.random(rows) < 0.1).astype(np.int8),
        }
    )


def _skewed(rng: np.random.Generator, rows: int, size: int) -> npt.NDArray[np.int64]:
    return (size * rng.random(rows) ** 3).astype(np.int64)


def _user_keys(users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return users * 7919 % 1_000_003_111
