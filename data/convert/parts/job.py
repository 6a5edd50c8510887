"""The state of a conversion in parts, which each worker gets or reads from the work folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

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

STAGE, SHARES, VALUES, ENCODE = "stage", "shares", "values", "encode"
ROWS_FILE, USERS_FILE, CODES_FILE = "rows.parquet", "users.arrow", "codes.npy"
SPLITS_FILE = "splits.arrow"
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
        return self.folder / stage / f"{number:06d}" / name

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


@lru_cache(maxsize=1)
def key_indices(folder: Path, run_id: str) -> dict[Side, SortedIndex]:
    """Returns the positions of the keys of users and items."""
    return {side: SortedIndex(folder / f"{side}_index.arrow") for side in SIDES}


def write_keys(raw: RawTables, folder: Path) -> None:
    """Writes the keys of users and items with their positions, for the workers."""
    for side in SIDES:
        SortedIndex.write(folder / f"{side}_index.arrow", raw.table(side)[f"{side}_key"].to_arrow())


def mapped_sides(raw: RawTables, folder: Path) -> RawTables:
    """Returns the tables with users and items in files that are mapped into memory."""
    mapped: dict[str, Any] = {}
    for side in SIDES:
        table = raw.table(side)
        features = (feature.raw_column for feature in raw.features if feature.side == side)
        names = dict.fromkeys([f"{side}_key", *raw.text_columns(side), *features])
        columns = [_mapped(_file(folder, side, n), table[n].to_frame()) for n in names]
        mapped[f"{side}s"] = pl.concat(columns, how="horizontal")
    return replace(raw, **mapped)


def without_rows(raw: RawTables) -> RawTables:
    """Returns tables that have only the columns of users and items."""
    return replace(raw, users=raw.users.clear(), items=raw.items.clear())


def keep_mapped(folder: Path, feature: str, column: pl.DataFrame) -> pl.DataFrame:
    """Writes an encoded feature of users or items for the workers, and maps it into memory."""
    return _mapped(_file(folder, "values", feature), column)


def _mapped(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    path.parent.mkdir(exist_ok=True)
    write_mapped(path, frame)
    return read_mapped(path)


def write_vocabularies(encoded: EncodedFeatures, folder: Path) -> None:
    """Writes the vocabularies of features of the interactions, for the workers."""
    (folder / COLUMNS).mkdir(exist_ok=True)
    for name, vocabulary in encoded.vocabularies.items():
        if isinstance(vocabulary, Vocabulary) and name not in encoded.values:
            values = vocabulary.values.alias("value")
            write_mapped(_file(folder, "vocabulary", name), values.to_frame())
            SortedIndex.write(_file(folder, "index", name), values.to_arrow())


def _file(folder: Path, kind: str, feature: str) -> Path:
    return folder / COLUMNS / f"{safe_name(f'{kind}-{feature}')}.arrow"


@dataclass(frozen=True)
class MappedVocabulary(Vocabulary):
    """Vocabulary of a worker, which looks up the values of many parts."""

    index_file: Path

    @cached_property
    def index(self) -> SortedIndex:
        """Positions of the values."""
        return SortedIndex(self.index_file)


class Encoded(NamedTuple):
    """Columns `value` and `is_missing` of users and items; vocabularies of the interactions."""

    columns: dict[str, pl.DataFrame]
    vocabularies: dict[str, MappedVocabulary]


@lru_cache(maxsize=1)
def read_encoded(folder: Path, run_id: str, names: tuple[tuple[str, bool], ...]) -> Encoded:
    """Returns what was written; `names` are features, and whether they have values."""
    columns: dict[str, pl.DataFrame] = {}
    vocabularies: dict[str, MappedVocabulary] = {}
    for name, is_side in names:
        if is_side:
            columns[name] = read_mapped(_file(folder, "values", name))
        else:
            values = read_mapped(_file(folder, "vocabulary", name))["value"]
            vocabularies[name] = MappedVocabulary(values, _file(folder, "index", name))
    return Encoded(columns, vocabularies)


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
