"""Scoring of a file of raw rows with an export: one score per row, in the same order."""

import codecs
import itertools
import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from msrec.data.features.row_encoder import OTHER_NAMES, RowEncoder
from msrec.data.io.atomic_files import atomic_path
from msrec.data.io.json_files import unique_keys
from msrec.data.io.outputs import SEARCHED_BYTES, FileKind, check_output, has_columns
from msrec.data.io.parquet_files import named_errors
from msrec.launch.evaluation.scored_rows.commit import COMBINED, label_column
from msrec.launch.serving.scorer import Scorer

CHUNK_ROWS = 1 << 16
KEPT_COLUMNS = ("user_key", "item_key", "scenario")
"""Columns of the output besides the scores; keys may have their other names in the input."""
COLUMNS = (*KEPT_COLUMNS, "score")
"""First columns of every file of scores."""


def score_file(scorer: Scorer, source: Path, out: Path) -> int:
    """Writes `user_key`, `item_key`, `scenario` and the scores of each row.

    The scores are `score` of the first label, `score_1` and so on of the others, and `combined` if
    the export has a formula. The output appears only when it is complete.

    Args:
        scorer: an export.
        source: a .parquet or .jsonl file with the columns of raw rows; see `RowEncoder`.
        out: the .parquet or .jsonl file to write.

    Returns:
        The number of rows.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: a value is invalid, the message names its row and column; or a file name has
            another suffix.
    """
    for path in (source, out):
        if path.suffix not in _READERS:
            raise ValueError(f"{path} must end in .parquet or .jsonl, so that its kind is known.")
    if not source.is_file():
        raise FileNotFoundError(f"{source} must exist: a file of raw rows; it does not.")
    check_output(out, SCORES[out.suffix], [source, scorer.folder])
    out.parent.mkdir(parents=True, exist_ok=True)
    read, write = _READERS[source.suffix], _WRITERS[out.suffix]
    with atomic_path(out) as scratch:
        tables = _scored(scorer, source, read(source, scorer.encoder.row_encoder))
        empty = pa.table({name: pa.nulls(0) for name in (*KEPT_COLUMNS, *scorer.manifest.scores)})
        return write(scratch, tables, empty)


def _scored(scorer: Scorer, source: Path, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    first_row = 0
    for table in tables:
        rows = scorer.encoder.encode_table(table, str(source), first_row)
        scores = dict(zip(scorer.manifest.scores, scorer.score(rows).T, strict=True))
        present = table.column_names
        kept = {n: table[n if n in present else OTHER_NAMES[n]] for n in KEPT_COLUMNS}
        yield pa.table(kept | {name: pa.array(values) for name, values in scores.items()})
        first_row += table.num_rows


def _read_parquet(path: Path, encoder: RowEncoder) -> Iterator[pa.Table]:
    with named_errors(path), pq.ParquetFile(path) as file:
        columns = encoder.columns_of(file.schema_arrow.names)
        encoder.require(file.schema_arrow.names, str(path))
        for batch in file.iter_batches(CHUNK_ROWS, columns=columns):
            yield pa.Table.from_batches([batch])


def _read_json(path: Path, encoder: RowEncoder) -> Iterator[pa.Table]:
    """Yields the rows of the lines that are not blank."""
    with path.open("rb") as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        filled = (line for line in file if line.strip())
        for first_row in itertools.count(step=CHUNK_ROWS):
            lines = itertools.islice(filled, CHUNK_ROWS)
            rows = [_json_row(path, row, line) for row, line in enumerate(lines, first_row)]
            if not rows:
                return
            yield encoder.table(rows, str(path), first_row)


def _json_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = from_json(line, allow_inf_nan=True)
        if isinstance(row, dict) and line.count(b":") > len(row):  # it may have a key twice
            json.loads(line, object_pairs_hook=unique_keys)
    except ValueError as error:
        raise ValueError(f"{path}: row {number} must be JSON in UTF-8; {error}.") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}: row {number} must be an object; found {reprlib.repr(row)}.")
    return row


def _write_parquet(path: Path, tables: Iterator[pa.Table], empty: pa.Table) -> int:
    first, num_rows = next(tables, empty), 0
    with pq.ParquetWriter(path, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)
            num_rows += table.num_rows
    return num_rows


def _write_json(path: Path, tables: Iterator[pa.Table], empty: pa.Table) -> int:
    num_rows = 0
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            rows = table.to_pylist()
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            num_rows += table.num_rows
    return num_rows


def _has_scores(path: Path) -> bool:
    """Returns whether the first line of a file is what `_write_json` writes."""
    with path.open("rb") as file:
        line = file.readline(SEARCHED_BYTES)
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and _are_scores(list(row))


def _are_scores(columns: list[str]) -> bool:
    """Returns whether these are the columns of a file of scores, of one label or of several."""
    others = columns[len(COLUMNS) :]
    of_labels = [label_column("score", number) for number in range(1, len(others) + 1)]
    is_known = others in (of_labels, [*of_labels[:-1], COMBINED])
    return columns[: len(COLUMNS)] == list(COLUMNS) and is_known


SCORES = {
    ".parquet": FileKind("a file of scores", has_columns(_are_scores)),
    ".jsonl": FileKind("a file of scores", _has_scores),
}
_READERS = {".parquet": _read_parquet, ".jsonl": _read_json}
_WRITERS = {".parquet": _write_parquet, ".jsonl": _write_json}
