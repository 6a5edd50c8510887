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
from msrec.data.features.vocabulary import VOCABULARIES
from msrec.data.io.outputs import new_folder
from msrec.data.schema import SPLITS, Schema, SparseFeature, SplitRecord, TextFields, save_schema
from msrec.data.synthetic import catalogue
from msrec.data.synthetic.integer_vocabulary import IntegerVocabulary
from msrec.data.synthetic.simulator import SHARES, App, Rows
from msrec.data.synthetic.streamed_counts import CHUNK_ROWS, LABELS, StreamedCounts

TRUTHS = {"p_click": "p_click", "truth_like": "p_like", "truth_watch": "e_watch"}
"""Column with the best possible score of a label -> its field of `Rows`; the columns are not in
`Schema.columns`, so that no model reads them."""


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

    The labels are `click`, `like`, and `watch`, the seconds of a watched video, which exists only
    after a click. Interactions have three columns that the schema does not name: `p_click` and
    `truth_like`, the probabilities of the labels, and `truth_watch`, the expectation of `watch`.
    `Schema.counts` has what these reach on the test split, for all rows, per scenario, and for cold
    and warm users: `best_auc` of click, and under `best` the `auc` of like, and `rmse` and `mae` of
    watch (by its median, for the MAE). A better model has seen the labels.

    `users.parquet` has an additional column `is_cold`. The scale of `watch` is that of the first
    training rows, at most `CHUNK_ROWS`.

    Raises:
        ValueError: the sizes do not make an app (see `App`), or `out` exists.
    """
    app = App(rows, users, items, seed, cold_fraction)
    stream = StreamedCounts(app)
    with new_folder(out, overwrite=overwrite) as folder:
        edges = (0, *app.bounds, app.rows)
        target = arrow_schema(_schema(app, stream), extra=tuple(TRUTHS))
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


def _table(
    chunk: Rows, encoded: Mapping[str, npt.NDArray[np.int32]], app: App, target: pa.Schema
) -> pa.Table:
    columns: dict[str, npt.NDArray[Any]] = {
        "user": chunk.user,
        "item": chunk.item,
        "scenario": chunk.scenario,
        "duration": app.log_duration[chunk.item],
        "hour": (chunk.hour - 11.5) / 6.922,  # mean and standard deviation of 0 to 23
        "timestamp": chunk.timestamp,
        **{name: getattr(chunk, name) for name in LABELS},
        **{name: getattr(chunk, truth) for name, truth in TRUTHS.items()},
        **encoded,
    }
    arrays = [
        pa.array(columns[field.name].astype(field.type.to_pandas_dtype(), copy=False))
        for field in target
    ]
    return pa.Table.from_arrays(arrays, schema=target)


def _schema(app: App, stream: StreamedCounts) -> Schema:
    last_training_row = app.generate(app.bounds[0] - 1, app.bounds[0])
    return Schema(
        name="synthetic",
        description="A short-video app (simulated): short clips that users watch on their phones.",
        scenarios=list(catalogue.SCENARIOS),
        tables={name: seen.rows for name, seen in stream.seen.items()},
        sparse=[SparseFeature(name=name, table=name) for name in stream.seen],
        dense=["duration", "hour"],
        labels=list(LABELS),
        label_options=stream.label_options,
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
