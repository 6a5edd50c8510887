"""The state of a conversion in parts, which each worker gets or reads from the work folder."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from msrec.data.convert.parts.stages import part_name
from msrec.data.convert.raw_tables import SIDES, RawTables, Side
from msrec.data.convert.row_filter import ROW
from msrec.data.convert.sources.plain.table_files import TableFile, file_rows
from msrec.data.convert.sources.plain.table_rows import Survey, TableRows
from msrec.data.convert.split import SplitChoice, SplitCodes, codes_by_name, codes_by_time
from msrec.data.convert.vocabulary_encoding import EncodedFeatures, TableKind
from msrec.data.features.value_index import SortedIndex
from msrec.data.features.vocabulary import Frequent, Vocabulary
from msrec.data.io.mapped_tables import read_mapped, write_mapped
from msrec.data.io.names import safe_name
from msrec.data.io.paths import AnyPath
from msrec.data.schema import Schema

KEYS, STAGE, SHARES, VALUES, INDEX, ENCODE = "keys stage shares values index encode".split()
ROWS_FILE, USERS_FILE, CODES_FILE = "rows.parquet", "users.arrow", "codes.npy"
SPLITS_FILE, INDEX_FILE = "splits.arrow", "index.arrow"
INDEX_ROWS = 1 << 22
"""Values of a share of an index, on average."""
COLUMNS = "columns"


@dataclass(frozen=True)
class RawPart:
    """The rows [start, start + rows) of a Parquet file."""

    path: TableFile
    start: int
    rows: int
    text: AnyPath | None = None
    """Text file of which the Parquet file was made, with the numbers of the rows."""

    @property
    def location(self) -> str:
        """The raw file."""
        return str(self.text or self.path)

    def read(self, columns: list[str] | None = None) -> pl.DataFrame:
        """Returns the rows, with their numbers in the raw file."""
        if self.text is not None and columns is not None:
            columns = [ROW, *columns]
        rows = file_rows(self.path, self.start, self.rows, columns)
        if self.text is not None:
            return rows
        return rows.drop(ROW, strict=False).with_row_index(ROW, self.start)


@dataclass(frozen=True)
class Job:
    """Settings and results of earlier stages; small, since each task carries them.

    `raw` has the columns of users and items without their rows, and no interactions. `starts` has
    the first row of each part among the good rows of all parts, then their number.
    """

    folder: Path
    run_id: str
    """Differs between conversions, since a worker keeps what it has read."""
    source: TableRows
    survey: Survey
    raw: RawTables
    choice: SplitChoice
    bad_rows: Literal["fail", "skip"]
    num_shares: int
    table_kinds: Mapping[str, TableKind] = field(default_factory=dict)
    parts: tuple[RawPart, ...] = ()
    starts: tuple[int, ...] = ()
    cuts: tuple[int, ...] = ()
    schema: Schema | None = None

    @property
    def extra_columns(self) -> list[str]:
        """Columns of the interactions that only the split needs."""
        return [self.choice.column] if self.choice.column else []

    def file(self, stage: str, number: int, name: str) -> Path:
        """Returns the path of a file of a part."""
        return self.folder / stage / part_name(number) / name

    def rows(self, number: int, columns: list[str] | None = None) -> pl.DataFrame:
        """Returns the staged rows of a part."""
        path = self.file(STAGE, number, ROWS_FILE)
        return pl.read_parquet(path, columns=columns and list(dict.fromkeys(columns)), glob=False)

    def split_codes(self, number: int, rows: pl.DataFrame) -> SplitCodes:
        """Returns the split of each row of a part, by the method of the choice."""
        start, stop = self.starts[number : number + 2]
        if self.choice.method == "time":
            assert self.raw.timestamp is not None
            return codes_by_time(rows[self.raw.timestamp].to_numpy(), self.cuts)
        if self.choice.method == "given":
            assert self.choice.column is not None
            location, numbers = self.parts[number].location, rows[ROW]
            column = rows[self.choice.column]
            return codes_by_name(column, lambda i: f"{location}: row {numbers[i]}")
        if self.choice.method == "random":
            return np.array(np.load(self.folder / CODES_FILE, mmap_mode="r")[start:stop])
        codes = np.empty(stop - start, np.int8)
        for share in range(self.num_shares):
            row, code = (
                np.load(self.file(SHARES, share, f"{name}.npy"), mmap_mode="r")
                for name in ("row", "code")
            )
            first, last = np.searchsorted(row, [start, stop])
            codes[row[first:last] - start] = code[first:last]
        return codes


class IndexShare(NamedTuple):
    """A share of the index of distinct values, which are the column of a file."""

    column: Path
    share: int
    shares: int


def index_shares(column: Path) -> list[IndexShare]:
    """Returns the shares of the index of a column: a process sorts one of them at a time."""
    shares = max(-(-read_mapped(column).height // INDEX_ROWS), 1)
    return [IndexShare(column, share, shares) for share in range(shares)]


def _indices(folder: Path, stage: str, columns: Iterable[Path]) -> Iterator[SortedIndex]:
    """Yields the index of each column, whose shares are the parts of a stage."""
    start = 0
    for shares in map(index_shares, columns):
        numbers = range(start, start + len(shares))
        yield SortedIndex([folder / stage / part_name(number) / INDEX_FILE for number in numbers])
        start += len(shares)


@lru_cache(maxsize=1)
def key_indices(folder: Path, run_id: str) -> dict[Side, SortedIndex]:
    """Returns the positions of the keys of users and items."""
    return dict(zip(SIDES, _indices(folder, KEYS, key_files(folder)), strict=True))


def key_files(folder: Path) -> list[Path]:
    """Returns the files with the keys of users and of items."""
    return [_file(folder, side, f"{side}_key") for side in SIDES]


def write_sides(raw: RawTables, folder: Path) -> None:
    """Writes the columns of users and items, for `mapped_sides`."""
    for side in SIDES:
        for name in _side_columns(raw, side):
            _write(_file(folder, side, name), raw.table(side).select(name))


def mapped_sides(raw: RawTables, folder: Path) -> RawTables:
    """Returns the tables with users and items in files that are mapped into memory."""
    mapped: dict[str, Any] = {}
    for side in SIDES:
        columns = [read_mapped(_file(folder, side, name)) for name in _side_columns(raw, side)]
        mapped[f"{side}s"] = pl.concat(columns, how="horizontal")
    return replace(raw, **mapped)


def _side_columns(raw: RawTables, side: Side) -> list[str]:
    """Returns the columns of users or items that a conversion reads, each once."""
    features = (feature.raw_column for feature in raw.features if feature.side == side)
    return list(dict.fromkeys([f"{side}_key", *raw.text_columns(side), *features]))


def without_rows(raw: RawTables) -> RawTables:
    """Returns tables that have only the columns of users and items."""
    return replace(raw, users=raw.users.clear(), items=raw.items.clear())


def keep_mapped(folder: Path, feature: str, column: pl.DataFrame) -> pl.DataFrame:
    """Writes an encoded feature of users or items for the workers, and maps it into memory."""
    path = _file(folder, "values", feature)
    _write(path, column)
    return read_mapped(path)


def _write(path: Path, frame: pl.DataFrame) -> None:
    path.parent.mkdir(exist_ok=True)
    write_mapped(path, frame)


def write_vocabularies(encoded: EncodedFeatures, folder: Path) -> list[Path]:
    """Writes the vocabularies of features of the interactions; returns their files, to index."""
    paths = []
    for name, vocabulary in encoded.vocabularies.items():
        if isinstance(vocabulary, Vocabulary) and name not in encoded.values:
            paths.append(_file(folder, "vocabulary", name))
            _write(paths[-1], vocabulary.values.alias("value").to_frame())
    return paths


def _file(folder: Path, kind: str, feature: str) -> Path:
    return folder / COLUMNS / f"{safe_name(f'{kind}-{feature}')}.arrow"


@dataclass(frozen=True)
class MappedVocabulary(Vocabulary):
    """Vocabulary of a worker, which looks up the values of many parts."""

    sorted_index: SortedIndex

    @property
    def index(self) -> SortedIndex:
        """Positions of the values."""
        return self.sorted_index


class Encoded(NamedTuple):
    """Columns `value` and `is_missing` of users and items; vocabularies of the interactions."""

    columns: dict[str, pl.DataFrame]
    vocabularies: dict[str, MappedVocabulary]


@lru_cache(maxsize=1)
def read_encoded(folder: Path, run_id: str, names: tuple[tuple[str, bool], ...]) -> Encoded:
    """Returns what was written; `names` are features, and whether they have values."""
    columns = {n: read_mapped(_file(folder, "values", n)) for n, is_side in names if is_side}
    files = {n: _file(folder, "vocabulary", n) for n, is_side in names if not is_side}
    indices = _indices(folder, INDEX, files.values())
    return Encoded(
        columns,
        {
            name: MappedVocabulary(read_mapped(path)["value"], index)
            for (name, path), index in zip(files.items(), indices, strict=True)
        },
    )


def encoded_features(job: Job) -> EncodedFeatures:
    """Returns what encodes rows: vocabularies of the interactions, values of users and items."""
    assert job.schema is not None
    fixed = {n: kind for n, kind in job.table_kinds.items() if not isinstance(kind, Frequent)}
    names = {
        feature.name: feature.side != "interaction"
        for feature in job.raw.features
        if feature.side != "interaction" or (feature.kind != "dense" and feature.name not in fixed)
    }
    encoded = read_encoded(job.folder, job.run_id, tuple(names.items()))
    return EncodedFeatures(
        {"user": job.schema.num_users, "item": job.schema.num_items},
        values={name: column["value"] for name, column in encoded.columns.items()},
        missing={name: column["is_missing"] for name, column in encoded.columns.items()},
        vocabularies={**encoded.vocabularies, **fixed},
    )
