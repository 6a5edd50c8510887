"""Conversion of raw tables to a dataset folder: stage, split, encode, write, count."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from msrec.data.convert.dataset_writer import (
    PartWriter,
    arrow_column,
    arrow_schema,
    write_table,
)
from msrec.data.convert.raw_tables import SIDES, Progress, RawTables, Side
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.split import TRAIN, SplitChoice, SplitCodes, split_rows
from msrec.data.convert.staging import StagedRows, stage_interactions
from msrec.data.convert.statistics import ConversionCounts, num_duplicates
from msrec.data.convert.table_checks import checked_tables
from msrec.data.convert.vocabulary_encoding import EncodedFeatures, encode_features
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
    out: Path | str,
    choice: SplitChoice | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    row_filter: RowFilter | None = None,
    grow_from: AnyPath | None = None,
    hashed: Mapping[str, Hashed | Managed] | None = None,
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
        hashed: features with a table of fixed size, hashed or managed, instead of a vocabulary.
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
        encoded = encode_features(raw, stage, codes, known, hashed)
        save_vocabularies(encoded.vocabularies, folder)
        raw = dataclasses.replace(raw, label_options=_scaled_labels(raw, stage, codes))
        schema = _schema(raw, encoded, record)
        counts = _write_rows(raw, schema, stage, codes, encoded, folder, progress).to_dict()
        texts = {side: _text_table(raw, side) for side in SIDES}
        for side, frame in texts.items():
            write_table(frame, folder / f"{side}s.parquet")
        counts |= {
            "duplicates": num_duplicates(stage),
            "empty_text": _empty_texts(texts),
            "added": {table: count for table, count in stage.added.items() if count},
            "left_out": row_filter.excluded,
            "replaced": row_filter.replaced,
            "collisions": encoded.collisions,
        }
        schema = schema.model_copy(update={"counts": counts})
        del stage  # closes the memory maps before their files are removed
        shutil.rmtree(scratch)
        save_schema(schema, folder)
        if finish is not None:
            schema = finish(folder)
    return schema


def _write_rows(
    raw: RawTables,
    schema: Schema,
    stage: StagedRows,
    codes: SplitCodes,
    encoded: EncodedFeatures,
    folder: Path,
    progress: Progress | None,
) -> ConversionCounts:
    """Writes the interactions of all splits chunk by chunk, and counts them."""
    counts = ConversionCounts(raw, encoded)
    target = arrow_schema(schema)
    features = [feature.raw_column for feature in raw.interaction_features]
    with ExitStack() as stack:
        writers = [stack.enter_context(PartWriter(folder / split, target)) for split in SPLITS]
        for rows, frame in stage.chunks([*raw.copied_columns, *features]):
            columns = {name: frame[name] for name in raw.copied_columns}
            for name in ("user", "item", "scenario"):
                columns[name] = pl.Series(getattr(stage, name)[rows])
            is_missing = {}
            for feature in raw.features:
                if feature.side == "interaction":
                    values = frame[feature.raw_column]
                    is_missing[feature.name] = values.is_null().to_numpy()
                    columns[feature.name] = encoded.encode(feature.name, values)
                else:
                    values = encoded.values[feature.name]
                    columns[feature.name] = values.gather(columns[feature.side])
            counts.add(codes[rows], columns, is_missing)
            for code, writer in enumerate(writers):
                chosen = pl.Series(np.flatnonzero(codes[rows] == code))
                arrays = [arrow_column(columns[f.name].gather(chosen), f.type) for f in target]
                writer.append(pa.Table.from_arrays(arrays, schema=target))
            if progress:
                progress("writing", rows.stop, len(stage))
    return counts


def _scaled_labels(raw: RawTables, stage: StagedRows, codes: SplitCodes) -> dict[str, LabelOptions]:
    """Returns the options of the labels, with the scales of regression labels."""
    options = dict(raw.label_options)
    for name, each in options.items():
        if each.kind == "regression":
            parts = [
                frame[name].to_numpy()[codes[rows] == TRAIN] for rows, frame in stage.chunks([name])
            ]
            values = np.concatenate(parts)
            try:
                scale = make_scale(values[~np.isnan(values)], each)
            except ValueError as error:
                location = raw.location("interaction")
                raise ValueError(
                    f"{location}: label {name!r} {error}. Correct it or leave the label out."
                ) from None
            options[name] = each.model_copy(update={"scale": scale})
    return options


def _schema(raw: RawTables, encoded: EncodedFeatures, record: SplitRecord) -> Schema:
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
    )


def _text_table(raw: RawTables, side: Side) -> pl.DataFrame:
    """Returns the keys (int64 or string) and the texts of users or items, all strings."""
    frame = raw.table(side)
    texts = [_as_text(frame[column]).fill_null("") for column in raw.text_columns(side)]
    return pl.DataFrame([frame[f"{side}_key"], *texts])


def _as_text(values: pl.Series) -> pl.Series:
    if values.dtype.base_type() is pl.List:
        return values.cast(pl.List(pl.String)).list.join(", ")
    return values.cast(pl.String)


def _empty_texts(texts: Mapping[Side, pl.DataFrame]) -> dict[str, int]:
    """Counts the empty texts of each column that has some."""
    counts = {
        f"{side}s.{column}": int((frame[column] == "").sum())
        for side, frame in texts.items()
        for column in frame.columns[1:]
    }
    return {name: count for name, count in counts.items() if count}
