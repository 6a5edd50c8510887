"""The tiny dataset with managed users and items: numbers of their keys instead of table rows."""

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from tiny import TABLES, replace_column, tiny_dataset

from msrec.data.features.hashed_values import Managed
from msrec.data.schema import SparseFeature

ROWS = {"user_id": 24, "item_id": 30}
MANAGED = [
    SparseFeature(name="user_id", table="user_id", managed=True),
    SparseFeature(name="genres", table="genre", multi=True),
    SparseFeature(name="item_id", table="item_id", managed=True),
]


def managed_dataset(folder, sparse=MANAGED, rows=ROWS):
    """Users u0 to u39 and items i0 to i59, of which only some have rows at a time."""
    tiny_dataset(folder, sparse=sparse, tables=TABLES | rows)
    for path in folder.glob("*/*.parquet"):
        table = pq.read_table(path)
        for side in ("user", "item"):
            keys = pl.Series([f"{side[0]}{i}" for i in table[side].to_pylist()])
            numbers = Managed(rows[f"{side}_id"]).encode(keys)
            replace_column(path, f"{side}_id", pa.array(numbers.to_numpy(), pa.int64()))
    return folder
