"""Prompts: what each scenario is, and what each user did in every scenario, as text.

The history of a user comes from `train/*.parquet` and from nowhere else.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from msrec.data.llm.history import clean, item_texts, read_columns, user_histories
from msrec.data.llm.templates import Template, fill
from msrec.data.schema import Schema, load_schema


@dataclass(frozen=True)
class Prompts:
    """Prompts, and what could not be put into them.

    `frame` has the columns index (int64, the position in users.parquet or in the schema's
    scenarios), key (int64 or string), text, and has_history (bool). `counts` are of this share:
    `keys`, `no_history` (users training never saw), `left_out` (of them, those without attributes
    too: no prompt), and of the whole data set: `items_without_text`, `titles_cut`.
    """

    frame: pl.DataFrame
    counts: dict[str, int]

    def __len__(self) -> int:
        """Number of prompts."""
        return self.frame.height

    def pairs(self) -> list[tuple[int | str, str]]:
        """(key, text), in order."""
        return list(zip(self.frame["key"].to_list(), self.frame["text"].to_list(), strict=True))


def scenario_prompts(
    dataset: Path | str, template: Template, *, rank: int = 0, world_size: int = 1
) -> Prompts:
    """One prompt a scenario; its name comes first, so that every token after it knows which it is.

    Raises:
        FileNotFoundError: there is no dataset.
    """
    schema = load_schema(dataset)
    lines = "\n".join(
        template.scenario_line.format(name=s.name, description=s.description)
        for s in schema.scenarios
    )
    texts = [
        template.scenario.format(
            name=s.name, description=s.description, app=schema.description, scenarios=lines
        )
        for s in schema.scenarios
    ]
    frame = pl.DataFrame(
        {
            "index": pl.Series(range(schema.num_scenarios), dtype=pl.Int64),
            "key": [s.name for s in schema.scenarios],
            "text": texts,
            "has_history": True,
        }
    ).filter(pl.col("index") % world_size == rank)
    return Prompts(frame, {"keys": frame.height, "no_history": 0, "left_out": 0})


def user_prompts(
    dataset: Path | str, template: Template, *, rank: int = 0, world_size: int = 1
) -> Prompts:
    """One prompt a user of this rank's share (every `world_size`-th user, from `rank`).

    Raises:
        FileNotFoundError: the dataset, its users, items or training rows are not there.
        ValueError: a column is missing, an index out of range, a user key null or there twice.
    """
    folder = Path(dataset)
    schema = load_schema(folder)
    users = _users(folder, schema, template).filter(pl.col("index") % world_size == rank)
    texts, counts = item_texts(folder, schema, template)
    lines = user_histories(folder, schema, template, texts, rank, world_size)
    joined = users.join(lines, left_on="index", right_on="user", how="left", maintain_order="left")
    has_history = pl.col("history").is_not_null()
    counts |= {
        "no_history": joined["history"].null_count(),
        "left_out": joined.filter(~has_history & (pl.col("attributes") == "")).height,
    }
    text = fill(
        template.user,
        app=pl.lit(schema.description),
        attributes=pl.col("attributes"),
        history=pl.col("history").fill_null(pl.lit(template.no_history)),
        user_question=pl.lit(template.user_question),
    )
    frame = joined.filter(has_history | (pl.col("attributes") != "")).select(
        "index",
        "key",
        text=text.str.replace_all(r"\n{2,}", "\n").str.strip_chars(),
        has_history=has_history,
    )
    return Prompts(frame, {"keys": frame.height} | counts)


def _users(folder: Path, schema: Schema, template: Template) -> pl.DataFrame:
    """Columns index, key, attributes (a sentence, empty where a user has none)."""
    columns = schema.text.user_attributes
    users = read_columns(folder / "users.parquet", ["user_key", *columns])
    key = users["user_key"]
    key = key.cast(pl.Int64) if key.dtype.is_integer() else key.cast(pl.String)
    if key.null_count():
        row = key.is_null().arg_max()
        raise ValueError(
            f"{folder / 'users.parquet'}: user_key must not be null; row {row} is: name the user."
        )
    if key.n_unique() < len(key):
        twice = key.filter(key.is_duplicated())[0]
        raise ValueError(
            f"{folder / 'users.parquet'}: user_key must differ in every row; {twice!r} is there "
            f"more than once: merge its rows."
        )
    return users.select(
        index=pl.int_range(pl.len(), dtype=pl.Int64),
        key=key,
        attributes=_attributes(columns, template),
    )


def _attributes(columns: list[str], template: Template) -> pl.Expr:
    parts = []
    for column in columns:
        value = clean(column)
        label = column.removesuffix("_name").replace("_", " ")
        parts.append(pl.when(value != "").then(pl.lit(f"{label} ") + value))
    if not parts:
        return pl.lit("")
    joined = pl.concat_str(parts, separator=", ", ignore_nulls=True)
    return (
        pl.when(joined != "")
        .then(fill(template.attributes, attributes=joined))
        .otherwise(pl.lit(""))
    )
