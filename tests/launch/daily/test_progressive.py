"""Ids of grown tables in a progressive validation."""

import numpy as np
import pyarrow as pa
from tiny import tiny_schema

from msrec.launch.daily.progressive import KnownIds


def test_new_ids_of_grown_tables_become_row_0():
    columns = {
        "user_id": np.array([0, 4, 5, 40], np.int32),
        "item_id": np.array([60, 1, 2, 3], np.int32),
        "genres": pa.array([[1, 6], [], [3], [2, 5]], pa.list_(pa.int32())),
    }
    known = KnownIds(tiny_schema(), {"user_id": 5, "genre": 3})
    changed = known.apply(columns, np.arange(4), 0)
    assert changed["user_id"].tolist() == [0, 4, 0, 0]
    assert changed["item_id"].tolist() == [60, 1, 2, 3]
    assert changed["genres"].to_pylist() == [[1, 0], [], [0], [2, 0]]
    assert changed["user_id"].dtype == np.int32
    assert columns["user_id"].tolist() == [0, 4, 5, 40]
