"""Simulated app as a dataset folder of any size, with the best possible AUC in its counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from msrec.data.convert.dataset_writer import PartWriter, arrow_schema, write_table
from msrec.data.convert.raw_tables import Progress
from msrec.data.convert.statistics import counts_by_split
from msrec.data.features.shard_balance import imbalance_by_ranks
from msrec.data.features.vocabulary import UNKNOWN, VOCABULARIES
from msrec.data.io.outputs import new_folder
from msrec.data.schema import SPLITS, Schema, SparseFeature, SplitRecord, TextFields, save_schema
from msrec.data.synthetic import catalogue
from msrec.data.synthetic.integer_vocabulary import IntegerVocabulary
from msrec.data.synthetic.simulator import SHARES, App, Rows

CHUNK_ROWS = 512 * 1024
TRUTH = "p_click"
"""Column with the known click probability; not in `Schema.columns`, so no model reads it."""
BINS = 2**16
"""Bins of the click probability, from which the AUC is computed."""


def synthesize(
    out: Path | str,
    rows: int = 200_000,
    users: int = 600,
    items: int = 2_000,
    seed: int = 0,
    cold_fraction: float = 0.25,
    overwrite: bool = False,
    progress: Progress | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Schema:
    """Simulates rows and writes them in chunks; the size of the chunks does not change the files.

    Interactions have a column `p_click` that the schema does not name: the probability that each
    label was drawn with. `Schema.counts["best_auc"]` is its AUC on the test split: for all rows,
    per scenario, and for cold and warm users. A model with a better AUC has seen the labels.
    `users.parquet` has an additional column `is_cold`.

    Raises:
        ValueError: the sizes do not make an app (see `App`), or `out` exists.
    """
    app = App(rows, users, items, seed, cold_fraction)
    stream = _StreamedCounts(app)
    with new_folder(out, overwrite=overwrite) as folder:
        edges = (0, *app.bounds, app.rows)
        target = arrow_schema(_schema(app, stream), extra=(TRUTH,))
        for split, start, stop in zip(SPLITS, edges[:-1], edges[1:], strict=True):
            with PartWriter(folder / split, target) as writer:
                for begin in range(start, stop, chunk_rows):
                    end = min(begin + chunk_rows, stop)
                    chunk = app.generate(begin, end)
                    writer.append(_table(chunk, stream.encode(chunk, split), app, target))
                    if progress:
                        progress(f"writing {split}", end - start, stop - start)
        user_table, item_table = _users(app), _items(app)
        write_table(user_table, folder / "users.parquet")
        write_table(item_table, folder / "items.parquet")
        _save_vocabularies(app, stream.seen, user_table, item_table, folder / VOCABULARIES)
        schema = _schema(app, stream)
        save_schema(schema, folder)
    return schema


def binned_auc(negatives: npt.NDArray[np.int64], positives: npt.NDArray[np.int64]) -> float | None:
    """Returns the AUC of counts per bin of rising score; None if a class is empty.

    A negative and a positive in the same bin count as half a pair in order.

    Example:
        >>> binned_auc(np.array([2, 1]), np.array([0, 3]))
        0.8333333333333334
    """
    pairs = float(negatives.sum()) * float(positives.sum())
    if pairs == 0:
        return None
    below = negatives.cumsum() - negatives
    return float((positives * (below + 0.5 * negatives)).sum() / pairs)


class _StreamedCounts:
    """Vocabularies and counts, which are complete when all rows have passed."""

    def __init__(self, app: App) -> None:
        self.app = app
        # Side, value of each user or item, and number of values.
        self._features = {
            "user_id": ("user", np.arange(app.users), app.users),
            "item_id": ("item", np.arange(app.items), app.items),
            "category": ("item", app.category, app.num_categories),
            "creator": ("item", app.creator, int(app.creator.max()) + 1),
            "age_band": ("user", app.age, len(catalogue.AGE_BANDS)),
            "city_tier": ("user", app.city, len(catalogue.CITY_TIERS)),
        }
        self.seen = {name: IntegerVocabulary(size) for name, (_, _, size) in self._features.items()}
        num_scenarios = len(catalogue.SCENARIOS)
        self._rows = np.zeros((len(SPLITS), num_scenarios), dtype=np.int64)
        self._positives = np.zeros_like(self._rows)
        self._unknown: dict[str, dict[str, int]] = {}
        self._lookups = {n: np.zeros(seen.rows, dtype=np.int64) for n, seen in self.seen.items()}
        # Test rows by scenario, cold or not, click, and bin of p_click.
        self._truth = np.zeros((num_scenarios, 2, 2, BINS), dtype=np.int64)

    def encode(self, chunk: Rows, split: str) -> dict[str, npt.NDArray[np.int32]]:
        """Counts rows and returns the table rows of their features.

        The vocabularies grow by the values of training rows first.
        """
        code, num_scenarios = SPLITS.index(split), self._rows.shape[1]
        self._rows[code] += np.bincount(chunk.scenario, minlength=num_scenarios)
        clicked = chunk.scenario[chunk.click == 1]
        self._positives[code] += np.bincount(clicked, minlength=num_scenarios)
        if split == "test":
            self._count_truth(chunk)
        encoded = {}
        for name, (side, value_of, _) in self._features.items():
            values = value_of[chunk.user if side == "user" else chunk.item]
            if split == "train":
                self.seen[name].update(values)
            encoded[name] = self.seen[name].encode(values)
            if split == "train":
                self._lookups[name] += np.bincount(encoded[name], minlength=self.seen[name].rows)
            num_unknown = int((encoded[name] == UNKNOWN).sum())
            if num_unknown:
                splits = self._unknown.setdefault(name, {})
                splits[split] = splits.get(split, 0) + num_unknown
        return encoded

    def _count_truth(self, chunk: Rows) -> None:
        bins = np.minimum((chunk.p_click * BINS).astype(np.int64), BINS - 1)
        is_cold = self.app.is_cold[chunk.user].astype(np.int64)
        index = (chunk.scenario, is_cold, chunk.click.astype(np.int64), bins)
        flat = np.ravel_multi_index(index, self._truth.shape)
        counts = np.bincount(flat, minlength=self._truth.size)
        self._truth += counts.reshape(self._truth.shape)

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts under their names in `Schema.counts`."""
        return {
            "rows": counts_by_split(self._rows, catalogue.SCENARIO_NAMES),
            "positives": counts_by_split(self._positives, catalogue.SCENARIO_NAMES),
            "unknown": self._unknown,
            "hottest_rank": {
                name: imbalance_by_ranks(self._lookups[name], seen.by_value(self._lookups[name]))
                for name, seen in self.seen.items()
            },
            "cold_users": int(self.app.is_cold.sum()),
            "best_auc": self._best_auc(),
        }

    def _best_auc(self) -> dict[str, float | None]:
        groups = {"all": self._truth.sum(axis=(0, 1))}
        groups |= dict(zip(catalogue.SCENARIO_NAMES, self._truth.sum(axis=1), strict=True))
        groups["warm users"], groups["cold users"] = self._truth.sum(axis=0)
        return {name: binned_auc(*counts) for name, counts in groups.items()}


def _table(
    chunk: Rows, encoded: Mapping[str, npt.NDArray[np.int32]], app: App, target: pa.Schema
) -> pa.Table:
    columns: dict[str, npt.NDArray[Any]] = {
        "user": chunk.user,
        "item": chunk.item,
        "scenario": chunk.scenario,
        "duration": app.log_duration[chunk.item],
        "hour": (chunk.hour - 11.5) / 6.922,  # mean and standard deviation of 0 to 23
        "click": chunk.click,
        "timestamp": chunk.timestamp,
        TRUTH: chunk.p_click,
        **encoded,
    }
    arrays = [
        pa.array(columns[field.name].astype(field.type.to_pandas_dtype(), copy=False))
        for field in target
    ]
    return pa.Table.from_arrays(arrays, schema=target)


def _schema(app: App, stream: _StreamedCounts) -> Schema:
    last_training_row = app.generate(app.bounds[0] - 1, app.bounds[0])
    return Schema(
        name="synthetic",
        description="A short-video app (simulated): short clips that users watch on their phones.",
        scenarios=list(catalogue.SCENARIOS),
        tables={name: seen.rows for name, seen in stream.seen.items()},
        sparse=[SparseFeature(name=name, table=name) for name in stream.seen],
        dense=["duration", "hour"],
        labels=["click"],
        timestamp="timestamp",
        timestamp_unit="s",
        text=TextFields(
            item_title="title",
            item_attributes=["category", "creator"],
            user_attributes=["age_band", "city_tier"],
        ),
        split=SplitRecord(
            method="time", fractions=list(SHARES), train_until=int(last_training_row.timestamp[0])
        ),
        num_users=app.users,
        num_items=app.items,
        counts=stream.to_dict(),
    )


def _save_vocabularies(
    app: App,
    seen: Mapping[str, IntegerVocabulary],
    users: pl.DataFrame,
    items: pl.DataFrame,
    folder: Path,
) -> None:
    """Writes the raw value of each table row, as in users.parquet and items.parquet.

    It is null for a value that no training row has: such a value is unknown.
    """
    creators = np.full(int(app.creator.max()) + 1, None, dtype=object)
    creators[app.creator] = items["creator"].to_list()
    raw = {
        "user_id": users["user_key"],
        "item_id": items["item_key"],
        "category": pl.Series(catalogue.CATEGORIES),
        "creator": pl.Series(creators.tolist(), dtype=pl.String),
        "age_band": pl.Series(catalogue.AGE_BANDS),
        "city_tier": pl.Series(catalogue.CITY_TIERS),
    }
    folder.mkdir()
    for name, integers in seen.items():
        values = raw[name].gather(pl.Series(integers.values(), dtype=pl.Int64))
        pl.DataFrame({"value": values}).write_parquet(folder / f"{name}.parquet")


def _users(app: App) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_key": np.arange(app.users),
            "age_band": np.array(catalogue.AGE_BANDS)[app.age],
            "city_tier": np.array(catalogue.CITY_TIERS)[app.city],
            "is_cold": app.is_cold.astype(np.int64),
        }
    )


def _items(app: App) -> pl.DataFrame:
    rng = np.random.Generator(np.random.Philox(key=[app.seed, 13]))
    words = rng.integers(0, 2**16, (app.items, 2)).tolist()
    categories = app.category.tolist()
    numbers = (app.creator % app.creators_per_category).tolist()
    return pl.DataFrame(
        {
            "item_key": np.arange(app.items),
            "title": [catalogue.title(c, *w) for c, w in zip(categories, words, strict=True)],
            "category": np.array(catalogue.CATEGORIES)[app.category],
            "creator": list(map(catalogue.creator_name, numbers, categories)),
        }
    )
