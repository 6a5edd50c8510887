"""Random rows for any list of tables: a sample of a data set that is too large to be here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from msrec.data.convert.dataset_writer import PartWriter, arrow_schema, new_folder, write_table
from msrec.data.schema import (
    SPLITS,
    Scenario,
    Schema,
    SparseFeature,
    SplitRecord,
    TextFields,
    save_schema,
)

SHARES = (0.8, 0.1, 0.1)
"""Of the rows, for train, valid and test."""
SKEW = 3.0
"""An id is rows * u^SKEW, u uniform: a tenth of the ids gets about half of the lookups."""
DENSE = ["dense_0", "dense_1"]
Integers = npt.NDArray[np.int64]


class AnyTable(Protocol):
    """What is asked of a table: its rows, and how many features look up how many ids in it."""

    @property
    def name(self) -> str:
        """Of the table."""

    @property
    def rows(self) -> int:
        """Row 0, which stands for unknown ids, included."""

    @property
    def pooling(self) -> float:
        """Ids per row and feature, a mean; 1 is a single id."""

    @property
    def features(self) -> int:
        """Features that look the table up."""


def random_rows(
    out: Path | str,
    tables: Sequence[AnyTable],
    rows: int = 20_000,
    users: int = 500,
    items: int = 500,
    scenarios: int = 3,
    seed: int = 0,
    overwrite: bool = False,
) -> Schema:
    """Write a dataset folder whose ids span the tables as they are, however few its rows.

    A table with "user" ("item") in its name has one id for each user (item); ids of the others are
    drawn for each row, few of them often. A click's log odds are a sum of a normal number for each
    user and item, so that there is something to learn.

    Args:
        out: the folder.
        tables: of the model.
        rows: of all splits.
        users: how many are seen.
        items: how many are seen.
        scenarios: how many.
        seed: of all that is drawn.
        overwrite: an old dataset folder.

    Raises:
        ValueError: `out` is there already, or a table has fewer than 2 rows or more than 2^31 - 1.
    """
    for table in tables:
        if not 2 <= table.rows < 2**31:
            raise ValueError(
                f"a table must have 2 to {2**31 - 1} rows to be drawn from; {table.name} has "
                f"{table.rows}."
            )
    rng = np.random.default_rng(seed)
    schema = _schema(tables, users, items, scenarios, seed)
    own = {"user": rng.normal(size=users), "item": rng.normal(size=items)}
    ids = {
        (table.name, number): _ids(rng, table.rows, len(own[side]))
        for table in tables
        if (side := side_of(table.name)) is not None
        for number in range(table.features)
    }
    names = [scenario.name for scenario in schema.scenarios]
    counts: dict[str, dict[str, dict[str, int]]] = {"rows": {}, "positives": {}}
    with new_folder(out, overwrite) as folder:
        for split, share in zip(SPLITS, SHARES, strict=True):
            count = max(int(rows * share), 2)
            columns: dict[str, Any] = {
                "user": rng.integers(0, users, count),
                "item": rng.integers(0, items, count),
                "scenario": rng.integers(0, scenarios, count),
                **{name: rng.normal(size=count) for name in DENSE},
            }
            odds = own["user"][columns["user"]] + own["item"][columns["item"]]
            columns["click"] = rng.random(count) < 1 / (1 + np.exp(1 - odds))
            for what, of in (("rows", slice(None)), ("positives", columns["click"])):
                found = np.bincount(columns["scenario"][of], minlength=scenarios).tolist()
                counts[what][split] = {"all": sum(found)} | dict(zip(names, found, strict=True))
            for table in tables:
                for number, name in enumerate(feature_names(table)):
                    columns[name] = _column(rng, table, ids.get((table.name, number)), columns)
            target = arrow_schema(schema)
            arrays = [_arrow(columns[field.name], field.type) for field in target]
            with PartWriter(folder / split, target) as writer:
                writer.append(pa.Table.from_arrays(arrays, schema=target))
        write_table(pl.DataFrame({"user_key": np.arange(users)}), folder / "users.parquet")
        titles = [f"item {number}" for number in range(items)]
        described = pl.DataFrame({"item_key": np.arange(items), "title": titles})
        write_table(described, folder / "items.parquet")
        schema = schema.model_copy(update={"counts": counts})
        save_schema(schema, folder)
    return schema


def side_of(table: str) -> str | None:
    """Whose ids a table has by its name, "user" or "item"; None says nothing."""
    return next((side for side in ("user", "item") if side in table), None)


def feature_names(table: AnyTable) -> list[str]:
    """The table's own name, numbered where several features look it up."""
    if table.features == 1:
        return [table.name]
    return [f"{table.name}_{number}" for number in range(table.features)]


def _column(
    rng: np.random.Generator, table: AnyTable, own: Integers | None, columns: dict[str, Any]
) -> Any:
    """Ids of a feature in the rows of `columns`: those of its users or items, or drawn."""
    count = len(columns["user"])
    if table.pooling != 1:
        return _bags(rng, table.rows, table.pooling, count)
    side = side_of(table.name)
    if side is None or own is None:
        return _ids(rng, table.rows, count)
    return own[columns[side]]


def _ids(rng: np.random.Generator, rows: int, count: int) -> Integers:
    """Ids in [1, rows)."""
    return 1 + ((rows - 1) * rng.random(count) ** SKEW).astype(np.int64)


def _bags(
    rng: np.random.Generator, rows: int, pooling: float, count: int
) -> tuple[Integers, Integers]:
    """Offsets (count + 1,) and ids of bags of Poisson lengths."""
    offsets = np.concatenate([[0], rng.poisson(pooling, count).cumsum()])
    return offsets, _ids(rng, rows, int(offsets[-1]))


def _arrow(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, tuple):
        offsets, ids = (part.astype(np.int32) for part in values)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids), type=kind)
    return pa.array(values.astype(kind.to_pandas_dtype(), copy=False))


def _schema(
    tables: Sequence[AnyTable], users: int, items: int, scenarios: int, seed: int
) -> Schema:
    return Schema(
        name="random",
        description="An app of which only the sizes of its tables are known; its rows are random.",
        scenarios=[
            Scenario(name=f"scenario {number}", description=f"scenario {number} of {scenarios}")
            for number in range(1, scenarios + 1)
        ],
        tables={table.name: table.rows for table in tables},
        sparse=[
            SparseFeature(name=name, table=table.name, multi=table.pooling != 1)
            for table in tables
            for name in feature_names(table)
        ],
        dense=DENSE,
        labels=["click"],
        text=TextFields(item_title="title"),
        split=SplitRecord(method="random", seed=seed, fractions=list(SHARES)),
        num_users=users,
        num_items=items,
    )
