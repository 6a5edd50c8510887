"""Random rows for any list of embedding tables, in place of a data set that is too large."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from msrec.data.convert.dataset_writer import PartWriter, arrow_schema, write_table
from msrec.data.convert.statistics import counts_by_split
from msrec.data.io.outputs import new_folder
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
"""Shares of train, valid and test."""
NUM_SCENARIOS = 3
SKEW = 3.0
"""An id is rows * u^SKEW for a uniform u: a tenth of the ids gets about half of the lookups."""
DENSE = ["dense_0", "dense_1"]
Ids = npt.NDArray[np.int64]


class TableShape(Protocol):
    """Shape of an embedding table."""

    @property
    def name(self) -> str:
        """Name of the table."""

    @property
    def rows(self) -> int:
        """Number of rows, with row 0 for unknown ids."""

    @property
    def pooling(self) -> float:
        """Mean number of ids in a row of a feature; 1 means a single id."""

    @property
    def features(self) -> int:
        """Number of features that look up the table."""


def random_rows(
    out: Path | str,
    tables: Sequence[TableShape],
    rows: int = 20_000,
    users: int = 500,
    items: int = 500,
    seed: int = 0,
    overwrite: bool = False,
    scenarios: int = NUM_SCENARIOS,
) -> Schema:
    """Writes a dataset folder of a few rows, whose ids cover the tables in full size.

    A table with "user" ("item") in its name has one id for each user (item); the ids of other
    tables are drawn for each row, few of them often. The log odds of a click are a sum of a normal
    number of the user and one of the item, so that there is something to learn.

    Args:
        out: the folder.
        tables: embedding tables of the model.
        rows: number of rows in all splits.
        users: number of users.
        items: number of items.
        seed: seed of the random numbers.
        overwrite: replace an older dataset folder.
        scenarios: number of scenarios.

    Raises:
        ValueError: `out` exists, or a table has fewer than 2 rows or more than 2^31 - 1.
    """
    for table in tables:
        if not 2 <= table.rows < 2**31:
            raise ValueError(
                f"a table must have 2 to {2**31 - 1} rows to be drawn from; {table.name} has "
                f"{table.rows}. Scale it."
            )
    rng = np.random.default_rng(seed)
    schema = _schema(tables, users, items, seed, scenarios)
    effects = {"user": rng.normal(size=users), "item": rng.normal(size=items)}
    own_ids = {
        name: _ids(rng, table.rows, len(effects[side]))
        for table in tables
        if (side := _side(table.name)) is not None
        for name in _feature_names(table)
    }
    num_rows, num_positives = np.zeros((2, len(SPLITS), scenarios), dtype=np.int64)
    target = arrow_schema(schema)
    with new_folder(out, overwrite=overwrite) as folder:
        for code, (split, share) in enumerate(zip(SPLITS, SHARES, strict=True)):
            columns = _columns(rng, max(int(rows * share), 2), effects, scenarios)
            scenario, click = columns["scenario"], columns["click"]
            num_rows[code] = np.bincount(scenario, minlength=scenarios)
            num_positives[code] = np.bincount(scenario[click], minlength=scenarios)
            for table in tables:
                for name in _feature_names(table):
                    columns[name] = _feature(rng, table, own_ids.get(name), columns)
            arrays = [_arrow(columns[field.name], field.type) for field in target]
            with PartWriter(folder / split, target) as writer:
                writer.append(pa.Table.from_arrays(arrays, schema=target))
        user_table = pl.DataFrame({"user_key": np.arange(users)})
        titles = [f"item {number}" for number in range(items)]
        item_table = pl.DataFrame({"item_key": np.arange(items), "title": titles})
        write_table(user_table, folder / "users.parquet")
        write_table(item_table, folder / "items.parquet")
        names = [scenario.name for scenario in schema.scenarios]
        counts = {"rows": num_rows, "positives": num_positives}
        by_split = {kind: counts_by_split(table, names) for kind, table in counts.items()}
        schema = schema.model_copy(update={"counts": by_split})
        save_schema(schema, folder)
    return schema


def _side(table: str) -> str | None:
    """Returns whether a table, by its name, has the ids of users or of items; None if neither."""
    return next((side for side in ("user", "item") if side in table), None)


def _feature_names(table: TableShape) -> list[str]:
    """Returns the name of the table, numbered if several features look it up."""
    if table.features == 1:
        return [table.name]
    return [f"{table.name}_{number}" for number in range(table.features)]


def _columns(
    rng: np.random.Generator, num_rows: int, effects: dict[str, Any], scenarios: int
) -> dict[str, Any]:
    """Returns the columns of a split that do not depend on the tables."""
    columns: dict[str, Any] = {
        side: rng.integers(0, len(effects[side]), num_rows) for side in ("user", "item")
    }
    columns["scenario"] = rng.integers(0, scenarios, num_rows)
    columns |= {name: rng.normal(size=num_rows) for name in DENSE}
    odds = sum(effects[side][columns[side]] for side in effects)
    columns["click"] = rng.random(num_rows) < 1 / (1 + np.exp(1 - odds))
    return columns


def _feature(
    rng: np.random.Generator, table: TableShape, own_ids: Ids | None, columns: dict[str, Any]
) -> Any:
    """Returns the ids of a feature: those of the rows' users or items, or drawn ones.

    Several ids in a row are offsets (rows + 1,) and flat ids, with Poisson lengths.
    """
    num_rows = len(columns["user"])
    if table.pooling != 1:
        offsets = np.concatenate([[0], rng.poisson(table.pooling, num_rows).cumsum()])
        return offsets, _ids(rng, table.rows, int(offsets[-1]))
    side = _side(table.name)
    if side is None or own_ids is None:
        return _ids(rng, table.rows, num_rows)
    return own_ids[columns[side]]


def _ids(rng: np.random.Generator, rows: int, count: int) -> Ids:
    """Draws ids in [1, rows)."""
    return 1 + ((rows - 1) * rng.random(count) ** SKEW).astype(np.int64)


def _arrow(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, tuple):
        offsets, ids = (part.astype(np.int32) for part in values)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids), type=kind)
    return pa.array(values.astype(kind.to_pandas_dtype(), copy=False))


def _schema(
    tables: Sequence[TableShape], users: int, items: int, seed: int, scenarios: int
) -> Schema:
    return Schema(
        name="random",
        description="An app of which only the sizes of its tables are known; its rows are random.",
        scenarios=[
            Scenario(name=f"scenario {n}", description=f"scenario {n} of {scenarios}")
            for n in range(1, scenarios + 1)
        ],
        tables={table.name: table.rows for table in tables},
        sparse=[
            SparseFeature(name=name, table=table.name, multi=table.pooling != 1)
            for table in tables
            for name in _feature_names(table)
        ],
        dense=DENSE,
        labels=["click"],
        text=TextFields(item_title="title"),
        split=SplitRecord(method="random", seed=seed, fractions=list(SHARES)),
        num_users=users,
        num_items=items,
    )
