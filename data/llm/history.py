"""Histories: what an item is called, and what every user did in every scenario.

Rows come from `train/*.parquet` and from nowhere else.
"""

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from msrec.data.llm.templates import Template, fill
from msrec.data.schema import Schema

BETWEEN_ITEMS = "; "


def item_texts(
    folder: Path, schema: Schema, template: Template
) -> tuple[pl.Series, dict[str, int]]:
    """What a prompt says of each item, null where there is nothing to say."""
    title_column = schema.text.item_title
    columns = schema.text.item_attributes[: template.item_details]
    items = read_columns(
        folder / "items.parquet",
        ["item_key", *([title_column] if title_column else []), *columns],
    )
    title = clean(title_column) if title_column else pl.lit("")
    details: list[pl.Expr] = [pl.when(clean(c) != "").then(clean(c)) for c in columns]
    joined = pl.concat_str(details, separator=", ", ignore_nulls=True) if details else pl.lit("")
    parts = items.select(
        "item_key",
        title=_cut(title, template.title_chars),
        details=_cut(joined, template.title_chars),
        is_cut=title.str.len_chars() > template.title_chars,
    )
    full = fill(template.item, title=pl.col("title"), details=pl.col("details"))
    plain = fill(template.item_plain, title=pl.col("title") + pl.col("details"))
    has_title, has_details = pl.col("title") != "", pl.col("details") != ""
    text = pl.when(has_title & has_details).then(full).when(has_title | has_details).then(plain)
    texts = parts.select(text=text)["text"]
    counts = {
        "items_without_text": texts.null_count(),
        "titles_cut": int(parts["is_cut"].sum()),
    }
    return texts, counts


def user_histories(
    folder: Path,
    schema: Schema,
    template: Template,
    texts: pl.Series,
    rank: int,
    world_size: int,
) -> pl.DataFrame:
    """Columns user, history: lines of items, newest first, scenarios taking turns for the room."""
    rows = _training_rows(folder, schema, rank, world_size)
    _check_range(rows, "user", schema.num_users, folder)
    _check_range(rows, "item", len(texts), folder)
    _check_range(rows, "scenario", schema.num_scenarios, folder)
    ids = texts.rank("dense").cast(pl.UInt32)
    said = pl.DataFrame({"id": ids, "text": texts}).drop_nulls().unique("id")
    line = ["user", "scenario", "liked"]
    room = pl.when("liked").then(template.positives).otherwise(template.negatives)
    positive, negative = template.words_of(schema.labels[0])
    names = pl.Series([s.name for s in schema.scenarios])
    turn = pl.int_range(pl.len()).over(line)
    return (
        rows.with_columns(id=ids.gather(rows["item"]))
        .drop_nulls("id")
        .lazy()
        .sort(pl.col("when"), pl.col("row"), descending=True)
        .unique([*line, "id"], keep="first", maintain_order=True)
        .with_columns(turn=turn)
        .filter(pl.col("turn") < room)
        .with_row_index("age")
        .sort("turn", "age")
        .filter(pl.int_range(pl.len()).over("user", "liked") < room)
        .join(said.lazy(), on="id", how="left")
        .sort(*line, "turn", descending=[False, False, True, False])
        .group_by(line, maintain_order=True)
        .agg(items=pl.col("text").str.join(BETWEEN_ITEMS))
        .with_columns(
            text=fill(
                template.history,
                scenario=pl.col("scenario").replace_strict(range(len(names)), names),
                word=pl.when("liked").then(pl.lit(positive)).otherwise(pl.lit(negative)),
                items=pl.col("items"),
            )
        )
        .group_by("user", maintain_order=True)
        .agg(history=pl.col("text").str.join("\n"))
        .with_columns(pl.col("user").cast(pl.Int64))
        .collect()
    )


def _training_rows(folder: Path, schema: Schema, rank: int, world_size: int) -> pl.DataFrame:
    """Columns row, user, item, scenario, liked, when of this rank's users."""
    files = sorted((folder / "train").glob("*.parquet"))
    if not files:
        raise FileNotFoundError(
            f"{folder / 'train'} must hold Parquet files; found none: convert the data set again."
        )
    label, stamp = schema.labels[0], schema.timestamp
    needed = ["user", "item", "scenario", label, *([stamp] if stamp else [])]
    for file in files:
        _check_columns(file, needed)
    return (
        pl.scan_parquet(files)
        .with_row_index("row")
        .select(
            "row",
            "user",
            "item",
            "scenario",
            liked=pl.col(label) > 0.5,
            when=pl.col(stamp) if stamp else pl.lit(0),
        )
        .filter(pl.col("user") % world_size == rank)
        .collect(engine="streaming")
    )


def _check_range(rows: pl.DataFrame, column: str, size: int, folder: Path) -> None:
    bad = rows.filter(~pl.col(column).is_between(0, size - 1))
    if bad.height:
        raise ValueError(
            f"{folder / 'train'}: column {column!r} must lie in [0, {size}); row "
            f"{bad['row'][0]} holds {bad[column][0]}: convert the data set again."
        )


def _check_columns(file: Path, needed: list[str]) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file} must exist: convert the data set again.")
    found = pq.read_schema(file).names
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(
            f"{file} must have the column {missing[0]!r}; it has {', '.join(found)}: convert the "
            f"data set again or mend `text` in dataset.yaml."
        )


def read_columns(file: Path, columns: list[str]) -> pl.DataFrame:
    """Some columns of a Parquet file, which must have them."""
    _check_columns(file, columns)
    return pl.read_parquet(file, columns=list(dict.fromkeys(columns)))


def clean(column: str) -> pl.Expr:
    """A column as readable text on one line, never null."""
    text = pl.col(column).cast(pl.String).fill_null("")
    return (
        text.str.replace_all("|", ", ", literal=True).str.replace_all(r"\s+", " ").str.strip_chars()
    )


def _cut(text: pl.Expr, chars: int) -> pl.Expr:
    """At most `chars` characters, cut at the end of a word where there is one."""
    head = text.str.head(chars).str.replace(r"\s+\S*$", "")
    return pl.when(text.str.len_chars() > chars).then(head).otherwise(text)
