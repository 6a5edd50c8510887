"""Datasets of random rows in the shapes that benches measure."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msrec.data.synthetic.random_rows import random_rows
from msrec.tools.planner.tables import TableLoad

MOVIELENS_ROWS = {
    **{"user_id": 6_041, "item_id": 3_683, "gender": 3, "age": 8, "occupation": 22},
    **{"zip_code": 3_440, "genres": 19, "year": 82},
}
MOVIELENS_DIM, LARGE_DIM = 16, 64


def movielens_tables() -> list[TableLoad]:
    """Returns the eight tables of MovieLens-1M: on average 2 genres per row, else one id."""
    return [
        TableLoad(name=name, rows=rows, dim=MOVIELENS_DIM, pooling=2 if name == "genres" else 1)
        for name, rows in MOVIELENS_ROWS.items()
    ]


def large_tables(rows: int = 1_000_000, count: int = 8, ids: int = 20) -> list[TableLoad]:
    """Returns tables with `ids` lookups each in every row of the data."""
    return [TableLoad(name=f"t{n}", rows=rows, dim=LARGE_DIM, pooling=ids) for n in range(count)]


def write_random(folder: Path, tables: Sequence[TableLoad], batches: int, batch: int) -> Path:
    """Writes a dataset whose training split has `batches` batches; returns its folder."""
    random_rows(folder, tables, rows=-(-batches * batch * 10 // 8), users=5_000, items=3_000)
    return folder


@contextmanager
def dataset_or_random(dataset: Path | None, batches: int, batch: int) -> Iterator[Path]:
    """Yields the given dataset, or random rows in the shape of MovieLens in a temporary folder."""
    if dataset is not None:
        yield dataset
        return
    with tempfile.TemporaryDirectory() as folder:
        yield write_random(Path(folder) / "data", movielens_tables(), batches, batch)
