"""Score a file of raw rows with an export: rows in = rows out, in their order."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from msrec.data.io.atomic_files import atomic_path
from msrec.launch.serving.scorer import Scorer

CHUNK_ROWS = 1 << 16
KEPT = ("user_key", "item_key", "scenario")
"""Columns of the input that stand beside the score."""


def score_file(scorer: Scorer, source: Path, out: Path) -> int:
    """Write `user_key`, `item_key`, `scenario` and `score` for each row; whole or not at all.

    Args:
        scorer: an export.
        source: a .parquet or .jsonl file with the columns of a raw row.
        out: a .parquet or .jsonl file.

    Returns:
        The number of rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is bad, which is named by its number and column; or a file has another
            kind.
    """
    read, write = _READERS.get(source.suffix), _WRITERS.get(out.suffix)
    for path, known in ((source, read), (out, write)):
        if known is None:
            raise ValueError(f"{path} must end in .parquet or .jsonl, so that its kind is known.")
    assert read is not None and write is not None  # noqa: PT018
    if not source.is_file():
        raise FileNotFoundError(f"{source} must exist: a file of raw rows; it does not.")
    rows = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as scratch, write(scratch) as writer:
        for table in read(source, scorer):
            columns = scorer.raw.encode(table, str(source), first_row=rows)
            scores = scorer.score(scorer.maker.rows(columns))
            writer.write(table.select(KEPT).append_column("score", pa.array(scores)))
            rows += table.num_rows
    return rows


class _Writer(Protocol):
    def __enter__(self) -> "_Writer": ...
    def __exit__(self, *error: Any) -> None: ...
    def write(self, table: pa.Table) -> None:
        """Add rows."""


class _ParquetWriter:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def __enter__(self) -> "_ParquetWriter":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if self._file is None and kind is None:
            self.write(pa.table({**{n: pa.nulls(0) for n in KEPT}, "score": pa.nulls(0)}))
        if self._file is not None:
            self._file.close()

    def write(self, table: pa.Table) -> None:
        if self._file is None:
            self._file = pq.ParquetWriter(self._path, table.schema)
        self._file.write_table(table)


class _JsonWriter:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def __enter__(self) -> "_JsonWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def write(self, table: pa.Table) -> None:
        self._file.writelines(
            json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()
        )


def _parquet_rows(path: Path, scorer: Scorer) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            named = [name for name in file.schema_arrow.names if name in scorer.raw.names]
            for batch in file.iter_batches(CHUNK_ROWS, columns=named):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{path} must be a whole Parquet file; {reason}.") from None


def _json_rows(path: Path, scorer: Scorer) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    first = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: row {number} must be JSON; {error}.") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}: row {number} must be an object; found {line.strip()!r}.")
            rows.append(row)
            if len(rows) == CHUNK_ROWS:
                yield scorer.raw.table(rows, str(path), first)
                rows, first = [], number + 1
    if rows:
        yield scorer.raw.table(rows, str(path), first)


_READERS = {".parquet": _parquet_rows, ".jsonl": _json_rows}
_WRITERS: dict[str, Any] = {".parquet": _ParquetWriter, ".jsonl": _JsonWriter}
