"""Histories: what an item is called, and what every user did in every scenario.

Rows come from `train/*.parquet` and from nowhere else.
"""

from dataclasses import dataclass

import polars as pl

from msrec.data.io.parquet_files import parquet_files, parquet_names, readable, scan_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.llm.templates import Template, fill
from msrec.data.schema import Schema

BETWEEN_ITEMS = "; "


def item_texts(
    folder: AnyPath, schema: Schema, template: Template, details: int | None = None
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Columns key and text: what a prompt says of each item, null where there is nothing to say.

    `details` attributes follow the title; by default as many as the template shows in a history.
    """
    title_column = schema.text.item_title
    columns = schema.text.item_attributes[: template.item_details if details is None else details]
    items = read_columns(
        folder / "items.parquet",
        ["item_key", *([title_column] if title_column else []), *columns],
    )
    title = clean(title_column) if title_column else pl.lit("")
    known: list[pl.Expr] = [pl.when(clean(c) != "").then(clean(c)) for c in columns]
    joined = pl.concat_str(known, separator=", ", ignore_nulls=True) if known else pl.lit("")
    parts = items.select(
        key="item_key",
        title=_cut(title, template.title_chars),
        details=_cut(joined, template.title_chars if details is None else 4 * template.title_chars),
        is_cut=title.str.len_chars() > template.title_chars,
    )
    full = fill(template.item, title=pl.col("title"), details=pl.col("details"))
    plain = fill(template.item_plain, title=pl.col("title") + pl.col("details"))
    has_title, has_details = pl.col("title") != "", pl.col("details") != ""
    text = pl.when(has_title & has_details).then(full).when(has_title | has_details).then(plain)
    texts = parts.select("key", text=text)
    counts = {
        "items_without_text": texts["text"].null_count(),
        "titles_cut": int(parts["is_cut"].sum()),
    }
    return texts, counts


@dataclass(frozen=True)
class Room:
    """How many tokens the histories may have.

    `of_user` has the columns user and room: the tokens that the rest of a user's prompt leaves;
    `of_item` the tokens of each item's text with what stands between items; `of_line` those of a
    sentence without items.
    """

    of_user: pl.DataFrame
    of_item: pl.Series
    of_line: int


def user_histories(
    folder: AnyPath,
    schema: Schema,
    template: Template,
    texts: pl.Series,
    rank: int,
    world_size: int,
    room: Room | None = None,
) -> pl.DataFrame:
    """Columns user, history, num_items: lines of items, newest first.

    Scenarios and answers take turns, so that each has its newest items where there is not room for
    all; `num_items` counts those shown.
    """
    rows = _training_rows(folder, schema, rank, world_size)
    _check_range(rows, "user", schema.num_users, folder)
    _check_range(rows, "item", len(texts), folder)
    _check_range(rows, "scenario", schema.num_scenarios, folder)
    ids = texts.rank("dense").cast(pl.UInt32)
    said = pl.DataFrame({"id": ids, "text": texts}).drop_nulls().unique("id")
    line = ["user", "scenario", "liked"]
    most = pl.when("liked").then(template.positives).otherwise(template.negatives)
    positive, negative = template.words_of(schema.labels[0])
    names = pl.Series([s.name for s in schema.scenarios])
    turn = pl.int_range(pl.len()).over(line)
    chosen = (
        rows.with_columns(id=ids.gather(rows["item"]))
        .drop_nulls("id")
        .lazy()
        .sort(pl.col("when"), pl.col("row"), descending=True)
        .unique([*line, "id"], keep="first", maintain_order=True)
        .with_columns(turn=turn)
        .filter(pl.col("turn") < most)
        .with_row_index("age")
        .sort("turn", "age")
        .filter(pl.int_range(pl.len()).over("user", "liked") < most)
    )
    if room is not None:
        chosen = _fitting(chosen, room, line)
    return (
        chosen.join(said.lazy(), on="id", how="left")
        .sort(*line, "turn", descending=[False, False, True, False])
        .group_by(line, maintain_order=True)
        .agg(items=pl.col("text").str.join(BETWEEN_ITEMS), shown=pl.len())
        .with_columns(
            text=fill(
                template.history,
                scenario=pl.col("scenario").replace_strict(range(len(names)), names),
                word=pl.when("liked").then(pl.lit(positive)).otherwise(pl.lit(negative)),
                items=pl.col("items"),
            )
        )
        .group_by("user", maintain_order=True)
        .agg(history=pl.col("text").str.join("\n"), num_items=pl.col("shown").sum())
        .with_columns(pl.col("user").cast(pl.Int64))
        .collect()
    )


def _fitting(chosen: pl.LazyFrame, room: Room, line: list[str]) -> pl.LazyFrame:
    """The first items of each user, in turn, that the user's tokens have room for."""
    costs = pl.Series("cost", room.of_item)
    first = pl.col("turn") == pl.col("turn").min().over(line)
    return (
        chosen.with_columns(cost=pl.lit(costs).gather("item") + first.cast(pl.Int64) * room.of_line)
        .join(room.of_user.lazy(), on="user", how="left", maintain_order="left")
        .filter(pl.col("cost").cum_sum().over("user") <= pl.col("room"))
    )


def _training_rows(folder: AnyPath, schema: Schema, rank: int, world_size: int) -> pl.DataFrame:
    """Columns row, user, item, scenario, liked, when of this rank's users."""
    files = parquet_files(folder / "train")
    if not files:
        raise FileNotFoundError(
            f"{folder / 'train'} must hold Parquet files; found none: convert the data set again."
        )
    label, stamp = schema.labels[0], schema.timestamp
    needed = ["user", "item", "scenario", label, *([stamp] if stamp else [])]
    for file in files:
        _check_columns(file, needed)
    return (
        scan_parquet(files)
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


def _check_range(rows: pl.DataFrame, column: str, size: int, folder: AnyPath) -> None:
    bad = rows.filter(~pl.col(column).is_between(0, size - 1))
    if bad.height:
        raise ValueError(
            f"{folder / 'train'}: column {column!r} must lie in [0, {size}); row "
            f"{bad['row'][0]} holds {bad[column][0]}: convert the data set again."
        )


def _check_columns(file: AnyPath, needed: list[str]) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file} must exist: convert the data set again.")
    found = parquet_names(file)
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(
            f"{file} must have the column {missing[0]!r}; it has {', '.join(found)}: convert the "
            f"data set again or mend `text` in dataset.yaml."
        )


def read_columns(file: AnyPath, columns: list[str]) -> pl.DataFrame:
    """Some columns of a Parquet file, which must have them."""
    _check_columns(file, columns)
    with readable(file) as source:
        return pl.read_parquet(source, columns=list(dict.fromkeys(columns)))


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
