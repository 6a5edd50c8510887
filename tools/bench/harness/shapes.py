"""Datasets of random rows in the shapes that benches measure."""

from collections.abc import Sequence
from pathlib import Path

from msrec.data.synthetic.random_rows import random_rows
from msrec.tools.planner.tables import TableLoad

MOVIELENS_ROWS = {
    **{"user_id": 6_041, "item_id": 3_683, "gender": 3, "age": 8, "occupation": 22},
    **{"zip_code": 3_440, "genres": 19, "year": 82},
}
MOVIELENS_DIM = 16


def movielens_tables() -> list[TableLoad]:
    """The eight tables of MovieLens-1M; a film has 2 genres on average, all else is one id."""
    return [
        TableLoad(name=name, rows=rows, dim=MOVIELENS_DIM, pooling=2 if name == "genres" else 1)
        for name, rows in MOVIELENS_ROWS.items()
    ]


def large_tables(rows: int = 1_000_000, count: int = 8, ids: int = 20) -> list[TableLoad]:
    """Tables of which each has a bag of ids in every row of the data."""
    return [TableLoad(name=f"t{n}", rows=rows, dim=64, pooling=ids) for n in range(count)]


def shaped(folder: Path, tables: Sequence[TableLoad], batches: int, batch: int) -> Path:
    """A dataset folder whose training split has so many batches."""
    random_rows(folder, tables, rows=-(-batches * batch * 10 // 8), users=5_000, items=3_000)
    return folder
