"""Prompts: what each scenario is, and what each user did in every scenario, as text.

The history of a user comes from `train/*.parquet` and from nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from msrec.data.io.paths import AnyPath, to_path
from msrec.data.llm.history_text import (
    BETWEEN_ITEMS,
    Room,
    clean,
    item_texts,
    read_columns,
    user_histories,
)
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
    dataset: AnyPath | str, template: Template, *, rank: int = 0, world_size: int = 1
) -> Prompts:
    """One prompt a scenario; its name comes first, so that every token after it knows which it is.

    Raises:
        FileNotFoundError: there is no dataset.
    """
    schema = load_schema(dataset)
    texts = [
        template.scenario.format(
            name=s.name,
            description=s.description,
            app=schema.description,
            scenarios=_lines(schema, template),
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


@dataclass(frozen=True)
class Budget:
    """Tokens that a prompt of a user may have.

    Args:
        most: tokens of a whole prompt.
        tokenize: texts -> tokens of each, in the chat form.
        count: texts -> tokens of each by itself.
    """

    most: int
    tokenize: Callable[[Sequence[str]], list[int]]
    count: Callable[[Sequence[str]], list[int]]


def user_prompts(
    dataset: AnyPath | str,
    template: Template,
    *,
    rank: int = 0,
    world_size: int = 1,
    budget: Budget | None = None,
) -> Prompts:
    """One prompt a user of this rank's share (every `world_size`-th user, from `rank`).

    With a budget the history has as many items as there is room for; `counts` then has the users
    whose history lost items that way, `history_cut`.

    Raises:
        FileNotFoundError: the dataset, its users, items or training rows are not there.
        ValueError: a column is missing, an index out of range, a user key null or there twice, or
            the budget has room for no history at all.
    """
    folder = to_path(dataset)
    schema = load_schema(folder)
    users = _users(folder, schema, template).filter(pl.col("index") % world_size == rank)
    items, counts = item_texts(folder, schema, template)
    texts = items["text"]
    lines = user_histories(folder, schema, template, texts, rank, world_size)
    if budget is not None:
        room = _room(schema, template, users, texts, budget)
        fitting = user_histories(folder, schema, template, texts, rank, world_size, room)
        if lines.height and not fitting.height:
            rest = budget.most - int(room.of_user["room"].max())  # type: ignore[arg-type]
            raise ValueError(
                f"llm.max_tokens must have room for an item of history; got {budget.most}, and the "
                f"rest of a prompt has {rest} tokens or more. Raise it."
            )
        both = lines.join(fitting, on="user", how="left", suffix="_fitting")
        shown = both["num_items_fitting"].fill_null(0)
        counts["history_cut"] = int((shown < both["num_items"]).sum())
        lines = fitting
    joined = users.join(lines, left_on="index", right_on="user", how="left", maintain_order="left")
    has_history = pl.col("history").is_not_null()
    counts |= {
        "no_history": joined["history"].null_count(),
        "left_out": joined.filter(~has_history & (pl.col("attributes") == "")).height,
    }
    history = pl.col("history").fill_null(pl.lit(template.no_history))
    frame = joined.filter(has_history | (pl.col("attributes") != "")).select(
        "index",
        "key",
        text=_user_text(schema, template, history),
        has_history=has_history,
    )
    return Prompts(frame, {"keys": frame.height} | counts)


def item_prompts(
    dataset: AnyPath | str, template: Template, *, rank: int = 0, world_size: int = 1
) -> Prompts:
    """One prompt an item of this rank's share: its title and all its attributes.

    Items without text have none; they are counted as `left_out`.

    Raises:
        FileNotFoundError: the dataset or its items are not there.
        ValueError: a column is missing.
    """
    folder = to_path(dataset)
    schema = load_schema(folder)
    details = len(schema.text.item_attributes)
    items, counts = item_texts(folder, schema, template, details)
    text = fill(template.item_prompt, app=pl.lit(schema.description), item=pl.col("text"))
    index = pl.int_range(pl.len(), dtype=pl.Int64)
    mine = items.with_columns(_as_key(items["key"]), index=index).filter(
        pl.col("index") % world_size == rank
    )
    frame = mine.drop_nulls("text").select("index", "key", text=text, has_history=True)
    counts |= {"no_history": 0, "left_out": mine["text"].null_count()}
    return Prompts(frame, {"keys": frame.height} | counts)


def _intro(schema: Schema, template: Template) -> str:
    return template.intro.format(app=schema.description, scenarios=_lines(schema, template))


def _lines(schema: Schema, template: Template) -> str:
    return "\n".join(
        template.scenario_line.format(name=s.name, description=s.description)
        for s in schema.scenarios
    )


def _user_text(schema: Schema, template: Template, history: pl.Expr) -> pl.Expr:
    text = fill(
        template.user,
        intro=pl.lit(_intro(schema, template)),
        attributes=pl.col("attributes"),
        history=history,
        user_question=pl.lit(template.user_question),
    )
    return text.str.replace_all(r"\n{2,}", "\n").str.strip_chars()


def _room(
    schema: Schema, template: Template, users: pl.DataFrame, texts: pl.Series, budget: Budget
) -> Room:
    """What the budget leaves for histories."""
    distinct = users.select("attributes").unique()
    empty = distinct.select(_user_text(schema, template, pl.lit("-"))).to_series().to_list()
    left = budget.most - pl.Series(budget.tokenize(empty), dtype=pl.Int64)
    of_user = users.select("attributes", user=pl.col("index").cast(pl.Int32)).join(
        distinct.with_columns(room=left), on="attributes", how="left", maintain_order="left"
    )
    words = template.words_of(schema.labels[0])
    line = template.history.replace("{items}", "")
    sentences = [line.format(scenario=s.name, word=w) for s in schema.scenarios for w in words]
    between = max(budget.count([BETWEEN_ITEMS, f"{BETWEEN_ITEMS}a"]))
    known = pl.DataFrame({"text": texts}).unique().drop_nulls()
    costs = known.with_columns(cost=pl.Series(budget.count(known["text"].to_list())) + between)
    of_item = pl.DataFrame({"text": texts}).join(
        costs, on="text", how="left", maintain_order="left"
    )
    of_line = max(budget.count(sentences)) + 1
    return Room(of_user.select("user", "room"), of_item["cost"].fill_null(0), of_line)


def _users(folder: AnyPath, schema: Schema, template: Template) -> pl.DataFrame:
    """Columns index, key, attributes (a sentence, empty where a user has none)."""
    columns = schema.text.user_attributes
    users = read_columns(folder / "users.parquet", ["user_key", *columns])
    key = _as_key(users["user_key"])
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


def _as_key(values: pl.Series) -> pl.Series:
    """Keys as a store has them: int64 or string."""
    return values.cast(pl.Int64 if values.dtype.is_integer() else pl.String)


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
