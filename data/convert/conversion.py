"""Conversion of raw tables to a dataset folder: stage, split, encode, write, count."""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from msrec.data.convert.chunk_counts import POSITIONS, ChunkCounts
from msrec.data.convert.dataset_writer import (
    PartWriter,
    arrow_column,
    arrow_schema,
    write_table,
)
from msrec.data.convert.position_counts import PositionCounts
from msrec.data.convert.raw_tables import Progress, RawTables, Side
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.split import SplitChoice, SplitCodes, split_rows
from msrec.data.convert.staging import StagedRows, stage_interactions
from msrec.data.convert.statistics import ConversionCounts, num_duplicates
from msrec.data.convert.table_checks import checked_tables
from msrec.data.convert.vocabulary_encoding import (
    EncodedFeatures,
    TableKind,
    encode_features,
    trained_sides,
    training_values,
)
from msrec.data.features.hashed_values import Hashed, Managed
from msrec.data.features.vocabulary import load_vocabularies, save_vocabularies
from msrec.data.io.names import safe_name
from msrec.data.io.outputs import DATASET, new_folder
from msrec.data.io.paths import AnyPath
from msrec.data.labels import LabelOptions, make_scale
from msrec.data.schema import (
    SPLITS,
    Schema,
    SparseFeature,
    SplitRecord,
    save_schema,
)


def write_dataset(
    raw: RawTables,
    out: AnyPath | str,
    choice: SplitChoice | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    row_filter: RowFilter | None = None,
    grow_from: AnyPath | None = None,
    table_kinds: Mapping[str, TableKind] | None = None,
    finish: Callable[[Path], Schema] | None = None,
) -> Schema:
    """Checks, splits, encodes and writes raw tables; the folder appears as a whole.

    Vocabularies hold the values of the training split, after those of the dataset `grow_from`. All
    other ids become row 0. A missing (null) categorical value is row 0 too, a missing list is
    empty, and a missing text is ""; `Schema.counts` counts each case. Rows pass in chunks: memory
    holds the users, the items, and about 10 bytes a row.

    Args:
        raw: the tables.
        out: the dataset folder to make.
        choice: how to split the rows; at random if None.
        overwrite: replace an older dataset folder.
        progress: called while rows are written.
        row_filter: decides what happens to a bad row; the first one is refused if None.
        grow_from: an older dataset folder, whose values keep their table rows.
        table_kinds: features whose table has not a row for each value in training.
        finish: adds files to the folder before it appears, and returns its new schema.

    Raises:
        FileNotFoundError: `grow_from` has no vocabularies.
        ValueError: the tables hold what a dataset may not, a split is empty, or `out` exists.
    """
    choice, row_filter = choice or SplitChoice(), row_filter or RowFilter()
    raw = checked_tables(raw)
    known = load_vocabularies(grow_from) if grow_from is not None else None
    with new_folder(out, DATASET, [grow_from], overwrite=overwrite) as folder:
        scratch = folder / "stage"
        scratch.mkdir()
        extra_columns = [choice.column] if choice.column else []
        raw, stage = stage_interactions(raw, scratch, row_filter, extra_columns)
        codes, record = split_rows(stage, choice, raw.location("interaction"))
        in_training = training_values(raw, stage, codes, table_kinds)
        encoded = encode_features(
            raw, trained_sides(raw, stage, codes), in_training, known, table_kinds
        )
        raw = dataclasses.replace(raw, label_options=scaled_labels(raw, in_training))
        schema = schema_of(raw, encoded, record)
        counts = _write_rows(raw, schema, stage, codes, encoded, folder, progress)
        counts["duplicates"] = num_duplicates(stage)
        counts["empty_text"] = write_side(raw, "user", folder) | write_side(raw, "item", folder)
        added = stage.added
        del stage  # closes the memory maps before their files are removed
        shutil.rmtree(scratch)
        schema = write_metadata(schema, encoded, counts, added, row_filter, folder)
        if finish is not None:
            schema = finish(folder)
    return schema


def write_metadata(
    schema: Schema,
    encoded: EncodedFeatures,
    counts: dict[str, Any],
    added: Mapping[str, int],
    row_filter: RowFilter,
    folder: Path,
) -> Schema:
    """Writes the vocabularies and the schema of a dataset folder; returns the final schema.

    Args:
        schema: without counts.
        encoded: has the vocabularies.
        counts: of the rows, see `ConversionCounts`; with `duplicates` and `empty_text`.
        added: number of `users` and `items` that only interactions name.
        row_filter: has the counts of the rows that were left out.
        folder: of the dataset.
    """
    save_vocabularies(encoded.vocabularies, folder)
    counts |= {
        "added": {table: count for table, count in added.items() if count},
        "left_out": row_filter.excluded,
        "replaced": row_filter.replaced,
        "collisions": encoded.collisions,
        "cut": encoded.cut,
    }
    schema = schema.model_copy(update={"counts": counts})
    save_schema(schema, folder)
    return schema


def write_side(raw: RawTables, side: Side, folder: Path) -> dict[str, int]:
    """Writes users.parquet or items.parquet; returns the number of empty texts by column."""
    empty: Counter[str] = Counter()
    path = folder / f"{side}s.parquet"
    write_table(raw.table(side), path, partial(_text_table, raw, side, empty))
    return dict(empty)


def _write_rows(
    raw: RawTables,
    schema: Schema,
    stage: StagedRows,
    codes: SplitCodes,
    encoded: EncodedFeatures,
    folder: Path,
    progress: Progress | None,
) -> dict[str, Any]:
    """Writes the interactions of all splits chunk by chunk; returns their counts."""
    counts, by_position = ConversionCounts(raw), PositionCounts(raw, encoded)
    target = arrow_schema(schema)
    features = [feature.raw_column for feature in raw.interaction_features]
    with ExitStack() as stack:
        writers = [stack.enter_context(PartWriter(folder / split, target)) for split in SPLITS]
        for rows, frame in stage.chunks([*raw.copied_columns, *features]):
            positions = {n: pl.Series(n, getattr(stage, n)[rows]) for n in POSITIONS}
            frame = frame.with_columns(**positions)
            tables, chunk = encoded_rows(raw, encoded, frame, codes[rows], target)
            counts.add(chunk)
            by_position.add(chunk)
            for writer, table in zip(writers, tables, strict=True):
                writer.append(table)
            if progress:
                progress("writing", rows.stop, len(stage))
    return counts.to_dict(by_position.sides, by_position.hottest_ranks)


def encoded_rows(
    raw: RawTables,
    encoded: EncodedFeatures,
    frame: pl.DataFrame,
    codes: SplitCodes,
    target: pa.Schema,
) -> tuple[list[pa.Table], ChunkCounts]:
    """Encodes some staged rows; returns those of each split as they are written, and their counts.

    Args:
        raw: names the features and columns.
        encoded: has the vocabularies, and the features of users and items.
        frame: the columns `POSITIONS`, the copied ones, and the features of the interactions.
        codes: split of each row.
        target: columns to write.
    """
    columns = {name: frame[name] for name in (*raw.copied_columns, *POSITIONS)}
    is_missing = {}
    for feature in raw.features:
        if feature.side == "interaction":
            values = frame[feature.raw_column]
            is_missing[feature.name] = values.is_null().to_numpy()
            columns[feature.name] = encoded.encode(feature.name, values)
        else:
            values = encoded.values[feature.name]
            columns[feature.name] = values.gather(columns[feature.side])
    tables = []
    for code in range(len(SPLITS)):
        chosen = pl.Series(np.flatnonzero(codes == code))
        arrays = [arrow_column(columns[f.name].gather(chosen), f.type) for f in target]
        tables.append(pa.Table.from_arrays(arrays, schema=target))
    return tables, ChunkCounts.of(raw, encoded, codes, columns, is_missing)


def scaled_labels(
    raw: RawTables, in_training: Mapping[str, pl.DataFrame]
) -> dict[str, LabelOptions]:
    """Returns the options of the labels, with the scales of regression labels.

    Args:
        raw: names the labels.
        in_training: regression label -> its values in training and their rows, see `values_of`.

    Raises:
        ValueError: a label has no values or only one.
    """
    options = dict(raw.label_options)
    for name, each in options.items():
        if each.kind == "regression":
            values, rows = (in_training[name][column].to_numpy() for column in ("value", "rows"))
            try:
                scale = make_scale(values, each, rows)
            except ValueError as error:
                location = raw.location("interaction")
                raise ValueError(
                    f"{location}: label {name!r} {error}. Correct it or leave the label out."
                ) from None
            options[name] = each.model_copy(update={"scale": scale})
    return options


def schema_of(raw: RawTables, encoded: EncodedFeatures, record: SplitRecord) -> Schema:
    """Returns the schema of a dataset, without counts."""
    sparse = []
    for feature in raw.features:
        if feature.kind != "dense":
            vocabulary = encoded.vocabularies[feature.name]
            hashes = vocabulary.hashes if isinstance(vocabulary, Hashed) else None
            is_multi = feature.kind == "multi" or (hashes or 1) > 1
            name, table = feature.name, safe_name(feature.name)
            sparse.append(
                SparseFeature(
                    name=name,
                    table=table,
                    multi=is_multi,
                    hashes=hashes,
                    managed=isinstance(vocabulary, Managed),
                    separator=feature.separator,
                )
            )
    return Schema(
        name=raw.name,
        description=raw.description,
        scenarios=raw.scenarios,
        tables={safe_name(name): rows for name, rows in encoded.table_rows.items()},
        sparse=sparse,
        dense=[feature.name for feature in raw.features if feature.kind == "dense"],
        labels=list(raw.labels),
        label_options=raw.label_options,
        weight=raw.weight,
        impression=raw.impression,
        timestamp=raw.timestamp,
        timestamp_unit=raw.timestamp_unit,
        text=raw.text,
        split=record,
        num_users=raw.users.height,
        num_items=raw.items.height,
        raw_versions=raw.versions,
    )


def _text_table(
    raw: RawTables, side: Side, empty: Counter[str], frame: pl.DataFrame
) -> pl.DataFrame:
    """Returns keys (int64 or string) and texts of some users or items; counts the empty texts."""
    texts = [_as_text(frame[column]).fill_null("") for column in raw.text_columns(side)]
    for text in texts:
        if count := int((text == "").sum()):
            empty[f"{side}s.{text.name}"] += count
    return pl.DataFrame([frame[f"{side}_key"], *texts])


def _as_text(values: pl.Series) -> pl.Series:
    if values.dtype.base_type() is pl.List:
        return values.cast(pl.List(pl.String)).list.join(", ")
    return values.cast(pl.String)
