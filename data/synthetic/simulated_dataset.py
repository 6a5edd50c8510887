"""The simulated app as a dataset folder of any size, with the best possible AUC on record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from msrec.data.convert.conversion import Report
from msrec.data.convert.dataset_writer import PartWriter, arrow_schema, new_folder, write_table
from msrec.data.features.shard_balance import imbalance_by_ranks
from msrec.data.features.vocabulary import UNKNOWN, VOCABULARIES
from msrec.data.schema import SPLITS, Schema, SparseFeature, SplitRecord, TextFields, save_schema
from msrec.data.synthetic import catalogue
from msrec.data.synthetic.integer_vocabulary import IntegerVocabulary
from msrec.data.synthetic.posterior import reachable
from msrec.data.synthetic.simulator import SHARES, App, Rows

CHUNK_ROWS = 512 * 1024
TRUTH = "p_click"
"""Column with the known click probability; not in `Schema.columns`, so no model reads it."""

_BINS = 2**16
_DENSE = ["duration", "hour"]
_SIZES: dict[str, Callable[[App], int]] = {
    "user_id": lambda app: app.users,
    "item_id": lambda app: app.items,
    "category": lambda app: app.num_categories,
    "creator": lambda app: int(app.creator.max()) + 1,
    "age_band": lambda app: len(catalogue.AGE_BANDS),
    "city_tier": lambda app: len(catalogue.CITY_TIERS),
}


def synthesize(
    out: Path | str,
    rows: int = 200_000,
    users: int = 600,
    items: int = 2_000,
    seed: int = 0,
    cold_fraction: float = 0.25,
    overwrite: bool = False,
    report: Report | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Schema:
    """Simulate `rows` rows in chunks; the files do not depend on the size of the chunks.

    Interactions have one column more than the schema names, `p_click`: the probability each label
    was drawn with. `Schema.counts["best_auc"]` is its AUC on the test split, in all, per scenario,
    for cold and for warm users; a model that ranks better has seen the labels. For cold users
    `counts["reachable_auc"]` says besides what their few training rows allow, see
    `data.posterior`. `users.parquet` has one more column, `is_cold`.

    Raises:
        ValueError: the sizes do not make an app (see `App`), or `out` is there already.
    """
    app = App(rows, users, items, seed, cold_fraction)
    tally = _Tally(app)
    with new_folder(out, overwrite) as folder:
        edges = (0, *app.bounds, app.rows)
        for split, start, stop in zip(SPLITS, edges[:-1], edges[1:], strict=True):
            target = arrow_schema(_schema(app, tally, until=0), extra=(TRUTH,))
            with PartWriter(folder / split, target) as writer:
                for begin in range(start, stop, chunk_rows):
                    chunk = app.generate(begin, min(begin + chunk_rows, stop))
                    writer.append(_table(chunk, tally.encode(chunk, split), app, target))
                    if report:
                        report(f"writing {split}", begin + len(chunk.user) - start, stop - start)
        of_users, of_items = _users(app), _items(app)
        write_table(of_users, folder / "users.parquet")
        write_table(of_items, folder / "items.parquet")
        _save_vocabularies(app, tally, of_users, of_items, folder)
        if report:
            report("what cold users' training rows tell", 0, 1)
        tally.reachable_auc = _reachable_auc(app)
        last = app.generate(app.bounds[0] - 1, app.bounds[0])
        schema = _schema(app, tally, until=int(last.timestamp[0]))
        save_schema(schema, folder)
    return schema


def binned_auc(negatives: npt.NDArray[np.int64], positives: npt.NDArray[np.int64]) -> float | None:
    """AUC from counts per bin of rising score, ties within a bin at half; None with one class.

    Example:
        >>> binned_auc(np.array([2, 1]), np.array([0, 3]))
        0.8333333333333334
    """
    pairs = float(negatives.sum()) * float(positives.sum())
    if pairs == 0:
        return None
    below = negatives.cumsum() - negatives
    return float((positives * (below + 0.5 * negatives)).sum() / pairs)


def _reachable_auc(app: App) -> float | None:
    """Test AUC of the best that training rows of cold users allow to say of them."""
    if not app.is_cold.any():
        return None
    found = reachable(app)
    place = np.minimum((found.posterior * _BINS).astype(np.int64), _BINS - 1)
    click = found.click == 1
    negatives, positives = (np.bincount(place[c], minlength=_BINS) for c in (~click, click))
    return binned_auc(negatives, positives)


class _Tally:
    """What is known only after the rows have streamed by: vocabularies, counts, best AUC."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.seen = {name: IntegerVocabulary(size(app)) for name, size in _SIZES.items()}
        scenarios = len(catalogue.SCENARIOS)
        self.rows = np.zeros((len(SPLITS), scenarios), dtype=np.int64)
        self.positives = np.zeros_like(self.rows)
        self.unknown: dict[str, dict[str, int]] = {}
        self.lookups = {n: np.zeros(seen.rows, dtype=np.int64) for n, seen in self.seen.items()}
        self.reachable_auc: float | None = None
        # [scenario, cold, click, bin of p_click], test rows only
        self.best = np.zeros((scenarios, 2, 2, _BINS), dtype=np.int64)

    def encode(self, chunk: Rows, split: str) -> dict[str, npt.NDArray[np.int32]]:
        """Table rows per feature; training chunks extend the vocabularies first."""
        part = SPLITS.index(split)
        scenarios = len(catalogue.SCENARIOS)
        self.rows[part] += np.bincount(chunk.scenario, minlength=scenarios)
        clicked = chunk.scenario[chunk.click == 1]
        self.positives[part] += np.bincount(clicked, minlength=scenarios)
        if split == "test":
            self._count_truth(chunk)
        encoded = {}
        for name, values in _values(chunk, self.app).items():
            if split == "train":
                self.seen[name].update(values)
            encoded[name] = self.seen[name].encode(values)
            if split == "train":
                self.lookups[name] += np.bincount(encoded[name], minlength=len(self.lookups[name]))
            unknown = int((encoded[name] == UNKNOWN).sum())
            if unknown:
                splits = self.unknown.setdefault(name, {})
                splits[split] = splits.get(split, 0) + unknown
        return encoded

    def _count_truth(self, chunk: Rows) -> None:
        place = np.minimum((chunk.p_click * _BINS).astype(np.int64), _BINS - 1)
        cold = self.app.is_cold[chunk.user]
        index = (chunk.scenario, cold.astype(np.int64), chunk.click.astype(np.int64), place)
        flat = np.ravel_multi_index(index, self.best.shape)
        self.best += np.bincount(flat, minlength=self.best.size).reshape(self.best.shape)

    def counts(self) -> dict[str, Any]:
        """For `Schema.counts`."""
        return {
            "rows": self._by_split(self.rows),
            "positives": self._by_split(self.positives),
            "unknown": self.unknown,
            "hottest_rank": {
                name: imbalance_by_ranks(self.lookups[name], seen.by_value(self.lookups[name]))
                for name, seen in self.seen.items()
            },
            "cold_users": int(self.app.is_cold.sum()),
            "best_auc": self._best_auc(),
            "reachable_auc": {"cold users": self.reachable_auc},
        }

    def _by_split(self, table: npt.NDArray[np.int64]) -> dict[str, dict[str, int]]:
        names = [s.name for s in catalogue.SCENARIOS]
        return {
            split: {"all": int(row.sum())} | dict(zip(names, row.tolist(), strict=True))
            for split, row in zip(SPLITS, table, strict=True)
        }

    def _best_auc(self) -> dict[str, float | None]:
        groups = {"all": self.best.sum(axis=(0, 1))}
        groups |= {s.name: self.best[i].sum(axis=0) for i, s in enumerate(catalogue.SCENARIOS)}
        groups |= {"warm users": self.best[:, 0].sum(axis=0)}
        groups |= {"cold users": self.best[:, 1].sum(axis=0)}
        return {name: binned_auc(counts[0], counts[1]) for name, counts in groups.items()}


def _values(chunk: Rows, app: App) -> dict[str, npt.NDArray[np.int64]]:
    return {
        "user_id": chunk.user,
        "item_id": chunk.item,
        "category": app.category[chunk.item],
        "creator": app.creator[chunk.item],
        "age_band": app.age[chunk.user],
        "city_tier": app.city[chunk.user],
    }


def _table(
    chunk: Rows, encoded: dict[str, npt.NDArray[np.int32]], app: App, target: pa.Schema
) -> pa.Table:
    columns: dict[str, npt.NDArray[Any]] = {
        "user": chunk.user,
        "item": chunk.item,
        "scenario": chunk.scenario,
        "duration": app.log_duration[chunk.item],
        "hour": (chunk.hour - 11.5) / 6.922,
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


def _schema(app: App, tally: _Tally, until: int) -> Schema:
    return Schema(
        name="synthetic",
        description="A short-video app (simulated): short clips that users watch on their phones.",
        scenarios=list(catalogue.SCENARIOS),
        tables={name: seen.rows for name, seen in tally.seen.items()},
        sparse=[SparseFeature(name=name, table=name) for name in _SIZES],
        dense=_DENSE,
        labels=["click"],
        timestamp="timestamp",
        timestamp_unit="s",
        text=TextFields(
            item_title="title",
            item_attributes=["category", "creator"],
            user_attributes=["age_band", "city_tier"],
        ),
        split=SplitRecord(method="time", fractions=list(SHARES), train_until=until),
        num_users=app.users,
        num_items=app.items,
        counts=tally.counts(),
    )


def _save_vocabularies(
    app: App, tally: _Tally, users: pl.DataFrame, items: pl.DataFrame, folder: Path
) -> None:
    """The raw value of each table row, as users.parquet and items.parquet have it.

    Null where training did not show it: such a value is unknown.
    """
    (folder / VOCABULARIES).mkdir()
    raw = {"user_id": users["user_key"], "item_id": items["item_key"]}
    raw |= {
        "age_band": pl.Series(catalogue.AGE_BANDS),
        "city_tier": pl.Series(catalogue.CITY_TIERS),
    }
    raw["category"] = pl.Series(catalogue.CATEGORIES)
    creators = pl.DataFrame({"number": app.creator, "name": items["creator"]}).unique("number")
    for name, seen in tally.seen.items():
        value = pl.Series(seen.values())
        if name == "creator":
            column = value.to_frame("number").join(
                creators, "number", "left", maintain_order="left"
            )
            column = column.select(value="name")
        else:
            column = pl.DataFrame({"value": raw[name].gather(value)})
        column.write_parquet(folder / VOCABULARIES / f"{name}.parquet")


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
    words = np.random.Generator(np.random.Philox(key=[app.seed, 13])).integers(
        0, 2**16, (app.items, 2)
    )
    titles = zip(app.category.tolist(), words.tolist(), strict=True)
    number = app.creator % app.creators_per_category
    creators = zip(number.tolist(), app.category.tolist(), strict=True)
    return pl.DataFrame(
        {
            "item_key": np.arange(app.items),
            "title": [catalogue.title(c, subject, frame) for c, (subject, frame) in titles],
            "category": np.array(catalogue.CATEGORIES)[app.category],
            "creator": [catalogue.creator_name(k, c) for k, c in creators],
        }
    )
