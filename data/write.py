"""Raw tables and a split to a dataset folder: encode, count, write."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from msrec.data.ids import Vocabulary, count_unknown
from msrec.data.parts import PartWriter, arrow_column, arrow_schema, new_folder, write_table
from msrec.data.raw import Feature, RawTables, check_raw
from msrec.data.schema import SPLITS, Schema, SparseFeature, SplitRecord, save_schema
from msrec.data.split import TRAIN, Parts, SplitChoice, split_rows

Report = Callable[[str, int, int], None]
"""(stage, rows done, rows in all), called as the work goes on."""

CHUNK_ROWS = 1024 * 1024


def write_dataset(
    raw: RawTables,
    out: Path | str,
    choice: SplitChoice | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Schema:
    """Check, split, encode and write; the folder appears whole, `dataset.yaml` written last.

    Vocabularies hold what the training split holds; other ids become row 0 and are counted in
    `Schema.counts`. A missing (null) categorical value is row 0 too, a missing list is empty, and
    a missing text is ""; each is counted.

    Raises:
        ValueError: the tables hold what a dataset may not, a split is empty, or `out` is there.
    """
    check_raw(raw)
    parts, record = split_rows(
        raw.interactions, choice or SplitChoice(), raw.timestamp, raw.where("interactions")
    )
    columns = _encode(raw, parts)
    schema = _schema(raw, columns, parts, record)
    with new_folder(out, overwrite) as folder:
        for part, split in enumerate(SPLITS):
            rows = np.flatnonzero(parts == part)
            with PartWriter(folder / split, arrow_schema(schema)) as writer:
                for done, table in _tables(raw, schema, columns, rows):
                    writer.append(table)
                    if report:
                        report(f"writing {split}", done, len(rows))
        write_table(_readable(raw, "user"), folder / "users.parquet")
        write_table(_readable(raw, "item"), folder / "items.parquet")
        save_schema(schema, folder)
    return schema


@dataclass(frozen=True)
class _Columns:
    """Encoded features, each as long as the frame of its side, and the rows of its table."""

    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    encoded: dict[str, pl.Series]
    table_rows: dict[str, int]
    missing: dict[str, npt.NDArray[np.bool_]]

    def rows_of(self, feature: Feature) -> npt.NDArray[np.int32] | None:
        """For each interaction its row in the feature's frame; None where they are the same."""
        return {"user": self.user, "item": self.item}.get(feature.side)


def _encode(raw: RawTables, parts: Parts) -> _Columns:
    user = _positions(raw.interactions["user_key"], raw.users["user_key"])
    item = _positions(raw.interactions["item_key"], raw.items["item_key"])
    columns = _Columns(user, item, {}, {}, {})
    for feature in raw.features:
        values = raw.frame(feature.side)[1][feature.source]
        columns.missing[feature.name] = values.is_null().to_numpy()
        if feature.kind == "dense":
            columns.encoded[feature.name] = values.cast(pl.Float32)
            continue
        rows = columns.rows_of(feature)
        trained = np.unique(rows[parts == TRAIN]) if rows is not None else parts == TRAIN
        seen = values.gather(trained) if rows is not None else values.filter(pl.Series(trained))
        vocabulary = Vocabulary.fit(seen)
        columns.encoded[feature.name] = vocabulary.encode(values)
        columns.table_rows[feature.name] = vocabulary.rows
    return columns


def _positions(keys: pl.Series, table: pl.Series) -> npt.NDArray[np.int32]:
    rows = pl.Series(np.arange(len(table), dtype=np.int32))
    found: npt.NDArray[np.int32] = keys.replace_strict(
        table, rows, return_dtype=pl.Int32
    ).to_numpy()
    return found


def _tables(
    raw: RawTables, schema: Schema, columns: _Columns, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[int, pa.Table]]:
    target = arrow_schema(schema)
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        own = raw.interactions
        found = {name: own[name].gather(chunk) for name in ("scenario", *raw.labels)}
        found |= {"user": pl.Series(columns.user[chunk]), "item": pl.Series(columns.item[chunk])}
        if raw.timestamp:
            found[raw.timestamp] = own[raw.timestamp].gather(chunk)
        for feature in raw.features:
            side = columns.rows_of(feature)
            at = chunk if side is None else side[chunk]
            found[feature.name] = columns.encoded[feature.name].gather(at)
        arrays = [arrow_column(found[field.name], field.type) for field in target]
        yield start + len(chunk), pa.Table.from_arrays(arrays, schema=target)


def _schema(raw: RawTables, columns: _Columns, parts: Parts, record: SplitRecord) -> Schema:
    return Schema(
        name=raw.name,
        description=raw.description,
        scenarios=raw.scenarios,
        tables=columns.table_rows,
        sparse=[
            SparseFeature(name=f.name, table=f.name, multi=f.kind == "multi")
            for f in raw.features
            if f.kind != "dense"
        ],
        dense=[f.name for f in raw.features if f.kind == "dense"],
        labels=list(raw.labels),
        timestamp=raw.timestamp,
        text=raw.text,
        split=record,
        num_users=len(raw.users),
        num_items=len(raw.items),
        counts=_counts(raw, columns, parts),
    )


def _counts(raw: RawTables, columns: _Columns, parts: Parts) -> dict[str, Any]:
    key = ["user_key", "item_key", *([raw.timestamp] if raw.timestamp else [])]
    own = raw.interactions
    counts: dict[str, Any] = {
        "rows": {},
        "positives": {},
        "unknown": {},
        "missing": {},
        "users_without_training": {},
        "items_without_training": {},
        "duplicates": len(own) - own.select(key).n_unique(),
        "empty_text": _empty_text(raw),
    }
    for part, split in enumerate(SPLITS):
        rows = np.flatnonzero(parts == part)
        scenario = own["scenario"].gather(rows).to_numpy()
        label = own[raw.labels[0]].gather(rows).cast(pl.Int64).to_numpy()
        counts["rows"][split] = _per_scenario(raw, scenario, None)
        counts["positives"][split] = _per_scenario(raw, scenario, label)
        for feature in raw.features:
            _count_feature(counts, columns, feature, rows, split)
        for side in ("user", "item"):
            of: npt.NDArray[np.int32] = getattr(columns, side)
            cold = np.setdiff1d(of[rows], of[parts == TRAIN])
            counts[f"{side}s_without_training"][split] = len(cold)
    return counts


def _per_scenario(
    raw: RawTables, scenario: npt.NDArray[Any], weight: npt.NDArray[np.int64] | None
) -> dict[str, int]:
    sums = np.bincount(scenario, weights=weight, minlength=len(raw.scenarios)).astype(np.int64)
    return {"all": int(sums.sum())} | {
        s.name: int(n) for s, n in zip(raw.scenarios, sums, strict=True)
    }


def _count_feature(
    counts: dict[str, Any],
    columns: _Columns,
    feature: Feature,
    rows: npt.NDArray[np.int64],
    split: str,
) -> None:
    if feature.kind == "dense":
        return
    side = columns.rows_of(feature)
    at = rows if side is None else side[rows]
    missing = int(columns.missing[feature.name][at].sum())
    unknown = count_unknown(columns.encoded[feature.name].gather(at))
    unknown -= missing if feature.kind == "sparse" else 0
    for what, number in (("unknown", unknown), ("missing", missing)):
        if number:
            counts[what].setdefault(feature.name, {})[split] = number


def _text_columns(raw: RawTables, side: str) -> list[str]:
    if side == "user":
        return raw.text.user_attributes
    title = [raw.text.item_title] if raw.text.item_title else []
    return list(dict.fromkeys([*title, *raw.text.item_attributes]))


def _readable(raw: RawTables, side: str) -> pl.DataFrame:
    """The keys (int64 or string) and the texts, all strings."""
    frame = raw.frame(side)[1]
    key = frame[f"{side}_key"]
    texts = [_as_text(frame[c]).fill_null("") for c in _text_columns(raw, side)]
    return pl.DataFrame([key.cast(pl.Int64 if key.dtype.is_integer() else pl.String), *texts])


def _as_text(values: pl.Series) -> pl.Series:
    if values.dtype.base_type() is pl.List:
        return values.cast(pl.List(pl.String)).list.join(", ")
    return values.cast(pl.String)


def _empty_text(raw: RawTables) -> dict[str, int]:
    found = {
        f"{side}s.{c}": int((_as_text(raw.frame(side)[1][c]).fill_null("") == "").sum())
        for side in ("user", "item")
        for c in _text_columns(raw, side)
    }
    return {name: number for name, number in found.items() if number}
