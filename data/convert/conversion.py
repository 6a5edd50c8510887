"""Raw tables and a split to a dataset folder: stage, divide, encode, write, count."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from msrec.data.convert.dataset_writer import (
    PartWriter,
    arrow_column,
    arrow_schema,
    new_folder,
    write_table,
)
from msrec.data.convert.raw_tables import Feature, RawTables, check_tables
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.split import Parts, SplitChoice, split_rows
from msrec.data.convert.staging import StagedRows, stage_interactions
from msrec.data.convert.statistics import Tally, duplicates, empty_texts
from msrec.data.convert.vocabulary_encoding import Encoded, encode_features
from msrec.data.features.vocabulary import Hashed, load_vocabularies, save_vocabularies
from msrec.data.io.paths import AnyPath
from msrec.data.schema import SPLITS, Schema, SparseFeature, SplitRecord, save_schema

Report = Callable[[str, int, int], None]
"""(stage, done, total), called as the work goes on."""


def write_dataset(
    raw: RawTables,
    out: Path | str,
    choice: SplitChoice | None = None,
    overwrite: bool = False,
    report: Report | None = None,
    faults: RowFilter | None = None,
    grow_from: AnyPath | None = None,
    hashed: Mapping[str, Hashed] | None = None,
) -> Schema:
    """Check, split, encode and write; the folder appears whole, `dataset.yaml` written last.

    Vocabularies hold what the training split holds, and before it what the dataset `grow_from`
    knew; other ids become row 0 and are counted in `Schema.counts`. Features in `hashed` have
    tables of fixed size instead. A missing (null) categorical value is row 0 too, a missing list is
    empty, and a missing text is ""; each is counted. Rows pass in chunks: memory holds the users,
    the items, and about 10 bytes a row.

    Raises:
        FileNotFoundError: `grow_from` keeps no vocabularies.
        ValueError: the tables hold what a dataset may not, a split is empty, or `out` is there.
    """
    choice, faults = choice or SplitChoice(), faults or RowFilter()
    check_tables(raw)
    known = load_vocabularies(grow_from) if grow_from is not None else None
    with new_folder(out, overwrite) as folder:
        scratch = folder / "stage"
        scratch.mkdir()
        extra = [choice.column] if choice.column else []
        raw, stage = stage_interactions(raw, scratch, faults, extra)
        parts = np.lib.format.open_memmap(
            scratch / "parts.npy", mode="w+", dtype=np.int8, shape=(len(stage),)
        )
        _, record = split_rows(stage, choice, raw.where("interactions"), parts)
        encoded = encode_features(raw, stage, parts, known, hashed)
        save_vocabularies(encoded.vocabularies, folder)
        schema = _schema(raw, encoded, record)
        tally = Tally(raw, encoded)
        _write_rows(raw, schema, stage, parts, encoded, tally, folder, report)
        readable = [("user", _readable(raw, "user")), ("item", _readable(raw, "item"))]
        for side, frame in readable:
            write_table(frame, folder / f"{side}s.parquet")
        counts = tally.counts() | {
            "duplicates": duplicates(stage),
            "empty_text": empty_texts(readable),
            "added": {table: number for table, number in stage.added.items() if number},
            "left_out": faults.excluded,
            "collisions": encoded.collisions,
        }
        schema = schema.model_copy(update={"counts": counts})
        del stage, parts  # closes the memory maps before their files go
        shutil.rmtree(scratch)
        save_schema(schema, folder)
    return schema


def _write_rows(
    raw: RawTables,
    schema: Schema,
    stage: StagedRows,
    parts: Parts,
    encoded: Encoded,
    tally: Tally,
    folder: Path,
    report: Report | None,
) -> None:
    target = arrow_schema(schema)
    stamp = [raw.timestamp] if raw.timestamp else []
    own = [feature.source for feature in raw.interaction_features]
    with ExitStack() as stack:
        writers = [stack.enter_context(PartWriter(folder / split, target)) for split in SPLITS]
        for rows, frame in stage.chunks([*raw.labels, *stamp, *own]):
            columns = {n: frame[n] for n in (*raw.labels, *stamp)}
            columns |= {n: pl.Series(getattr(stage, n)[rows]) for n in ("user", "item", "scenario")}
            missing = {}
            for feature in raw.features:
                if feature.side == "interaction":
                    values = frame[feature.source]
                    missing[feature.name] = values.is_null().to_numpy()
                    vocabulary = encoded.vocabularies.get(feature.name)
                    found = vocabulary.encode(values) if vocabulary else values.cast(pl.Float32)
                else:
                    found = encoded.values[feature.name].gather(columns[feature.side])
                columns[feature.name] = found
            of_rows = {name: (bad, columns[name]) for name, bad in missing.items()}
            tally.add(stage, rows, parts[rows], frame[raw.labels[0]], of_rows)
            for part, writer in enumerate(writers):
                writer.append(_table(columns, np.flatnonzero(parts[rows] == part), target))
            if report:
                report("writing", rows.stop, len(stage))


def _table(
    columns: dict[str, pl.Series], rows: "np.ndarray[Any, np.dtype[np.intp]]", target: pa.Schema
) -> pa.Table:
    arrays = [arrow_column(columns[field.name].gather(rows), field.type) for field in target]
    return pa.Table.from_arrays(arrays, schema=target)


def _schema(raw: RawTables, encoded: Encoded, record: SplitRecord) -> Schema:
    return Schema(
        name=raw.name,
        description=raw.description,
        scenarios=raw.scenarios,
        tables=encoded.table_rows,
        sparse=[
            SparseFeature(
                name=f.name,
                table=f.name,
                multi=_is_multi(f, encoded),
                hashes=_hashes(f, encoded),
            )
            for f in raw.features
            if f.kind != "dense"
        ],
        dense=[f.name for f in raw.features if f.kind == "dense"],
        labels=list(raw.labels),
        timestamp=raw.timestamp,
        timestamp_unit=raw.timestamp_unit,
        text=raw.text,
        split=record,
        num_users=len(raw.users),
        num_items=len(raw.items),
    )


def _is_multi(feature: Feature, encoded: Encoded) -> bool:
    """Lists of ids: of several values, or of several hashes of one."""
    table = encoded.vocabularies[feature.name]
    return feature.kind == "multi" or (isinstance(table, Hashed) and table.hashes > 1)


def _hashes(feature: Feature, encoded: Encoded) -> int | None:
    table = encoded.vocabularies[feature.name]
    return table.hashes if isinstance(table, Hashed) else None


def _text_columns(raw: RawTables, side: str) -> list[str]:
    if side == "user":
        return raw.text.user_attributes
    title = [raw.text.item_title] if raw.text.item_title else []
    return list(dict.fromkeys([*title, *raw.text.item_attributes]))


def _readable(raw: RawTables, side: Literal["user", "item"]) -> pl.DataFrame:
    """The keys (int64 or string) and the texts, all strings."""
    frame = raw.frame(side)[1]
    key = frame[f"{side}_key"]
    texts = [_as_text(frame[c]).fill_null("") for c in _text_columns(raw, side)]
    return pl.DataFrame([key.cast(pl.Int64 if key.dtype.is_integer() else pl.String), *texts])


def _as_text(values: pl.Series) -> pl.Series:
    if values.dtype.base_type() is pl.List:
        return values.cast(pl.List(pl.String)).list.join(", ")
    return values.cast(pl.String)
