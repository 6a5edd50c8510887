"""Histories as text: the items that each user saw in every scenario.

The rows are those of training, see `history_rows`, so that a prompt holds nothing of other splits.
"""

from dataclasses import dataclass

import polars as pl

from msrec.data.io.parquet_files import parquet_metadata, parquet_names, read_rows
from msrec.data.io.paths import AnyPath
from msrec.data.llm.text.templates import Template, fill
from msrec.data.schema import Schema

ITEM_SEPARATOR = "; "
ITEM_PROMPT_FACTOR = 4
"""Attributes may be so many times as long in an item's own prompt as in a history."""
PLAIN_ITEM_TEXT, PLAIN_ITEM_VERSION = "{title}. {attributes}", 1
"""Form of `plain_item_texts`, which a store records; a change needs a new version."""
NEWEST_FIRST, NO_ORDER = "newest first", "in no particular order"
"""Words of a template, and those that replace them if no time orders the training rows."""
LINE = ["user", "scenario", "liked"]
"""Columns that identify a line of a history: each scenario and label value has one."""


def item_texts(
    folder: AnyPath,
    schema: Schema,
    template: Template,
    keys: range | None = None,
    *,
    all_attributes: bool = False,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Returns columns key and text of items, and counts of texts that are missing or cut.

    A text has the title and the first `template.item_details` attributes, or all of them for the
    item's own prompt; it is null for an item without either.
    """
    title_column, columns = schema.text.item_title, schema.text.item_attributes
    max_chars = ITEM_PROMPT_FACTOR * template.title_chars
    if not all_attributes:
        columns, max_chars = columns[: template.item_details], template.title_chars
    title_columns = [title_column] if title_column else []
    items = read_columns(folder / "items.parquet", ["item_key", *title_columns, *columns], keys)
    title = clean(title_column) if title_column else pl.lit("")
    details = [_or_null(clean(column)) for column in columns]
    joined = pl.concat_str(details, separator=", ", ignore_nulls=True) if details else pl.lit("")
    parts = items.select(
        key="item_key",
        title=_cut(title, template.title_chars),
        details=_cut(joined, max_chars),
        is_cut=title.str.len_chars() > template.title_chars,
    )
    has_title, has_details = pl.col("title") != "", pl.col("details") != ""
    both = fill(template.item, title=pl.col("title"), details=pl.col("details"))
    either = fill(template.item_plain, title=pl.col("title") + pl.col("details"))
    text = pl.when(has_title & has_details).then(both).when(has_title | has_details).then(either)
    texts = parts.select("key", text=text)
    num_missing, num_cut = texts["text"].null_count(), int(parts["is_cut"].sum())
    return texts, {"items_without_text": num_missing, "titles_cut": num_cut}


def plain_item_texts(
    folder: AnyPath, schema: Schema, keys: range | None = None
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Returns columns key and text, "title. attribute, attribute" uncut, and counts as above.

    It has no words around it, for sentence encoders and TF-IDF. A text is null for an item without
    title and attributes.
    """
    title, columns = schema.text.item_title, schema.text.item_attributes
    titles = [title] if title else []
    items = read_columns(folder / "items.parquet", ["item_key", *titles, *columns], keys)
    details = [_or_null(clean(column)) for column in columns]
    parts = [_or_null(clean(column)) for column in titles]
    if details:
        parts.append(_or_null(pl.concat_str(details, separator=", ", ignore_nulls=True)))
    joined = pl.concat_str(parts, separator=". ", ignore_nulls=True) if parts else pl.lit("")
    texts = items.select(key="item_key", text=_or_null(joined))
    return texts, {"items_without_text": texts["text"].null_count()}


@dataclass(frozen=True)
class HistoryBudget:
    """Limit on the tokens of histories.

    Args:
        user_tokens: columns user (int32) and available, the tokens that the rest of the user's
            prompt leaves for the history.
        item_tokens: (items,), int64, tokens of an item's text with its separator.
        line_tokens: tokens of a line without its items.
    """

    user_tokens: pl.DataFrame
    item_tokens: pl.Series
    line_tokens: int


def user_histories(
    rows: pl.DataFrame,
    schema: Schema,
    template: Template,
    texts: pl.Series,
    budget: HistoryBudget | None = None,
) -> tuple[pl.DataFrame, int]:
    """Returns the histories of the users of some rows, and how many lost items to the budget.

    `rows` are those of `history_rows`, and `texts` those of all items, null for an item to leave
    out. The histories have the columns user (int64) and history; users without an item to show are
    left out.
    """
    # Items with equal texts count as one, so that a line does not repeat a text.
    shown_items = rows.select("item").unique()
    shown_items = shown_items.with_columns(text=texts.gather(shown_items["item"]))
    text_ids = shown_items.with_columns(text_id=pl.col("text").rank("dense").cast(pl.UInt32))
    rows = rows.join(text_ids.drop("text"), on="item", maintain_order="left").drop_nulls("text_id")
    shown, num_cut = _newest_items(rows, template), 0
    if budget is not None:
        marked = _mark_fitting(shown, budget)
        shown, num_cut = marked.filter("fits"), marked.filter(~pl.col("fits"))["user"].n_unique()
    lines = _lines(shown.with_columns(text=texts.gather(shown["item"])), schema, template)
    histories = lines.group_by("user", maintain_order=True).agg(pl.col("history").str.join("\n"))
    return histories.with_columns(pl.col("user").cast(pl.Int64)), num_cut


def _newest_items(rows: pl.DataFrame, template: Template) -> pl.DataFrame:
    """Returns the rows whose items a history shows, those of highest priority first.

    Lines take turns: first comes the newest item of each line, then the second newest of each, and
    so on, up to the template's limits over all scenarios. A limit thus leaves each scenario its
    newest items, and room that one scenario does not use goes to the others.
    """
    most = pl.when("liked").then(template.positives).otherwise(template.negatives)
    return (
        rows.lazy()
        .sort("time", "row", descending=True)
        .unique([*LINE, "text_id"], keep="first", maintain_order=True)
        .with_columns(turn=pl.int_range(pl.len()).over(LINE))
        .filter(pl.col("turn") < most)
        .with_row_index("age")
        .sort("turn", "age")
        .filter(pl.int_range(pl.len()).over("user", "liked") < most)
        .collect()
    )


def _mark_fitting(rows: pl.DataFrame, budget: HistoryBudget) -> pl.DataFrame:
    """Adds the column `fits`: the budget has room for this item and those before it."""
    # The first item of a line also pays for the text around the items.
    line_cost = (pl.col("turn") == 0).cast(pl.Int64) * budget.line_tokens
    fits = pl.col("cost").cum_sum().over("user") <= pl.col("available")
    return (
        rows.with_columns(cost=pl.lit(budget.item_tokens).gather("item") + line_cost)
        .join(budget.user_tokens, on="user", how="left", maintain_order="left")
        .with_columns(fits=fits.fill_null(False))
    )


def _lines(rows: pl.DataFrame, schema: Schema, template: Template) -> pl.DataFrame:
    """Returns columns user and history (one line of it), by scenario, with label 1 first."""
    positive, negative = template.words_of(schema.labels[0])
    names = pl.Series([scenario.name for scenario in schema.scenarios])
    line = fill(
        template.history,
        scenario=pl.col("scenario").replace_strict(range(len(names)), names),
        word=pl.when("liked").then(pl.lit(positive)).otherwise(pl.lit(negative)),
        items=pl.col("items"),
    )
    return (
        rows.sort(*LINE, "turn", descending=[False, False, True, False])
        .group_by(LINE, maintain_order=True)
        .agg(items=pl.col("text").str.join(ITEM_SEPARATOR))
        .select("user", history=line)
    )


def check_columns(file: AnyPath, needed: list[str]) -> None:
    """Refuses a Parquet file that does not exist or lacks a column.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it lacks a column.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} must exist: convert the data set again.")
    present = parquet_names(file)
    missing = [name for name in needed if name not in present]
    if missing:
        raise ValueError(
            f"{file} must have the column {missing[0]!r}; it has {', '.join(present)}: convert the "
            f"data set again or correct `text` in dataset.yaml."
        )


def read_columns(file: AnyPath, columns: list[str], rows: range | None = None) -> pl.DataFrame:
    """Reads columns of a Parquet file; an error names the file or column that is missing."""
    check_columns(file, columns)
    names = list(dict.fromkeys(columns))
    if rows is None:
        rows = range(parquet_metadata(file).num_rows)
    return read_rows(file, rows.start, len(rows), names)


def clean(column: str) -> pl.Expr:
    """Returns a column as text on one line; null becomes empty, and `|` becomes a comma."""
    text = pl.col(column).cast(pl.String).fill_null("").str.replace_all("|", ", ", literal=True)
    return text.str.replace_all(r"\s+", " ").str.strip_chars()


def _or_null(text: pl.Expr) -> pl.Expr:
    """Returns null in place of an empty text."""
    return pl.when(text != "").then(text)


def _cut(text: pl.Expr, max_chars: int) -> pl.Expr:
    """Cuts longer texts to `max_chars` characters, at the end of a word if there is one."""
    head = text.str.head(max_chars).str.replace(r"\s+\S*$", "")
    return pl.when(text.str.len_chars() > max_chars).then(head).otherwise(text)
