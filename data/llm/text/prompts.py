"""Prompts for the LLM: one for each scenario, user or item of a dataset.

A user's prompt shows training rows only; see `history_rows`.
"""

from dataclasses import dataclass

import polars as pl

from msrec.data.io.paths import AnyPath, to_path
from msrec.data.llm.text.history_text import (
    NEWEST_FIRST,
    NO_ORDER,
    HistoryBudget,
    clean,
    item_texts,
    plain_item_texts,
    read_columns,
    user_histories,
)
from msrec.data.llm.text.templates import Template, fill
from msrec.data.llm.text.tokenization import PromptTokenizer
from msrec.data.llm.text.user_inputs import PreparedInputs, UserInputs
from msrec.data.schema import Schema, load_schema


@dataclass(frozen=True)
class Prompts:
    """Prompts of one level, of all keys or of some.

    Args:
        frame: columns index (int64, the position in users.parquet, items.parquet or the schema's
            scenarios), key (int64 or string), text and has_history (bool).
        counts: of these keys: `keys` (prompts), `no_history` (users without an item to show) and
            `left_out` (users and items without any text, which have no prompt); of the dataset:
            `items_without_text` and `titles_cut`.
    """

    frame: pl.DataFrame
    counts: dict[str, int]

    def __len__(self) -> int:
        """Number of prompts."""
        return self.frame.height

    def pairs(self) -> list[tuple[int | str, str]]:
        """Returns (key, text) of each prompt, in order."""
        return list(zip(self.frame["key"].to_list(), self.frame["text"].to_list(), strict=True))


def level_prompts(
    level: str,
    dataset: AnyPath | str,
    template: Template | None,
    tokens: PromptTokenizer | None = None,
    keys: range | None = None,
    prepared: PreparedInputs | None = None,
) -> Prompts:
    """Returns the prompts of level user, scenario or item, of all keys or of those at `keys`.

    Only users need `tokens` and may have `prepared`, and only items may have no template.
    """
    if level == "item" or template is None:
        return item_prompts(dataset, template, keys)
    if level == "scenario":
        return scenario_prompts(dataset, template, keys)
    return user_prompts(dataset, template, tokens, keys, prepared)


def require_text(dataset: AnyPath | str, level: str) -> None:
    """Refuses a dataset that has no text for the prompts of users or items.

    Raises:
        FileNotFoundError: there is no dataset.
        ValueError: dataset.yaml names no column with text.
    """
    text = load_schema(dataset).text
    columns = [text.item_title, *text.item_attributes]
    of = "items"
    if level == "user":
        columns += text.user_attributes
        of = "items or users"
    if level != "scenario" and not any(columns):
        raise ValueError(
            f"{to_path(dataset) / 'dataset.yaml'}: text must name a title or attributes of {of}, "
            f"for the prompts of each {level}; it names none. Convert tables with such columns."
        )


def num_keys(level: str, schema: Schema) -> int:
    """Returns the number of users, scenarios or items."""
    sizes = {"user": schema.num_users, "item": schema.num_items, "scenario": schema.num_scenarios}
    return sizes[level]


def scenario_prompts(
    dataset: AnyPath | str, template: Template, keys: range | None = None
) -> Prompts:
    """Returns the prompts of scenarios.

    A prompt begins with the scenario's name, since in a causal model only later tokens see it.

    Raises:
        FileNotFoundError: there is no dataset.
    """
    schema = load_schema(dataset)
    app = {"app": schema.description, "scenarios": _scenario_list(schema, template)}
    texts = [
        template.scenario.format(name=scenario.name, description=scenario.description, **app)
        for scenario in schema.scenarios
    ]
    names = [scenario.name for scenario in schema.scenarios]
    frame = pl.DataFrame({"key": names, "text": texts, "has_history": True})
    frame = _with_index(frame, None)
    if keys is not None:
        frame = frame[keys.start : keys.stop]
    return Prompts(frame, {"keys": frame.height, "no_history": 0, "left_out": 0})


def user_prompts(
    dataset: AnyPath | str,
    template: Template,
    tokens: PromptTokenizer | None = None,
    keys: range | None = None,
    prepared: PreparedInputs | None = None,
) -> Prompts:
    """Returns the prompts of users.

    With the model's tokenizer, a history has as many items as fit into its `max_tokens`, and
    `counts` has `history_cut`, the users whose history lost items. Without one, only the template
    limits a history. Without timestamps, or if all are the same, prompts say that histories have
    no particular order.

    Raises:
        FileNotFoundError: the dataset, its users, items or training rows do not exist.
        ValueError: a column is missing, an index is out of range, a user key is null or repeated,
            or `max_tokens` leaves no room for a single item.
    """
    folder = to_path(dataset)
    schema = load_schema(folder)
    users = _read_users(folder, schema, template, keys)
    if prepared is None or keys is None:
        check_user_keys(folder)
        inputs = UserInputs.read(folder, schema, template, tokens)
        if keys is not None:
            inputs = inputs.of_users(keys)
    else:
        inputs = prepared.read(keys)
    if not inputs.is_ordered:
        intro = template.intro.replace(NEWEST_FIRST, NO_ORDER)
        template = template.model_copy(update={"intro": intro})
    counts, texts = dict(inputs.counts), inputs.items["text"]
    args = (inputs.rows, schema, template, texts)
    if tokens is None:
        histories, _ = user_histories(*args)
    else:
        rest = _history_budget(schema, template, users, inputs.items["tokens"], tokens)
        histories, counts["history_cut"] = user_histories(*args, rest)
        if counts["history_cut"] and histories.is_empty():
            shortest = tokens.max_tokens - int(rest.user_tokens["available"].max())  # type: ignore[arg-type]
            raise ValueError(
                f"llm.max_tokens must have room for an item of history; got {tokens.max_tokens}, "
                f"and the rest of a prompt has {shortest} tokens or more. Raise it."
            )
    joined = users.join(
        histories, left_on="index", right_on="user", how="left", maintain_order="left"
    )
    has_history, has_attributes = pl.col("history").is_not_null(), pl.col("attributes") != ""
    counts["no_history"] = joined["history"].null_count()
    counts["left_out"] = joined.filter(~has_history & ~has_attributes).height
    history = pl.col("history").fill_null(pl.lit(template.no_history))
    text = _user_text(schema, template, history)
    frame = joined.filter(has_history | has_attributes).select(
        "index", "key", text=text, has_history=has_history
    )
    return Prompts(frame, {"keys": frame.height} | counts)


def item_prompts(
    dataset: AnyPath | str, template: Template | None, keys: range | None = None
) -> Prompts:
    """Returns the prompts of items, with their title and all attributes.

    Without a template, a prompt is the plain text of the item, see `plain_item_texts`.

    Raises:
        FileNotFoundError: the dataset or its items do not exist.
        ValueError: a column is missing.
    """
    folder = to_path(dataset)
    schema = load_schema(folder)
    if template is None:
        items, counts = plain_item_texts(folder, schema, keys)
        text = pl.col("text")
    else:
        items, counts = item_texts(folder, schema, template, keys, all_attributes=True)
        text = fill(template.item_prompt, app=pl.lit(schema.description), item=pl.col("text"))
    items = _with_index(items.with_columns(_as_key(items["key"])), keys)
    frame = items.drop_nulls("text").select("index", "key", text=text, has_history=True)
    counts |= {"no_history": 0, "left_out": items["text"].null_count()}
    return Prompts(frame, {"keys": frame.height} | counts)


def _with_index(frame: pl.DataFrame, keys: range | None) -> pl.DataFrame:
    """Adds the column index, int64, of rows that are all keys or those at `keys`."""
    frame = frame.with_row_index("index", keys.start if keys else 0)
    return frame.with_columns(pl.col("index").cast(pl.Int64))


def _scenario_list(schema: Schema, template: Template) -> str:
    return "\n".join(
        template.scenario_line.format(name=scenario.name, description=scenario.description)
        for scenario in schema.scenarios
    )


def _user_text(schema: Schema, template: Template, history: pl.Expr) -> pl.Expr:
    scenarios = _scenario_list(schema, template)
    text = fill(
        template.user,
        intro=pl.lit(template.intro.format(app=schema.description, scenarios=scenarios)),
        attributes=pl.col("attributes"),
        history=history,
        user_question=pl.lit(template.user_question),
    )
    return text.str.replace_all(r"\n{2,}", "\n").str.strip_chars()


def _history_budget(
    schema: Schema,
    template: Template,
    users: pl.DataFrame,
    item_tokens: pl.Series,
    tokens: PromptTokenizer,
) -> HistoryBudget:
    """Returns the tokens that the rest of the prompts leaves for histories.

    Each text is counted once, and the counts are added: that is much faster than to tokenise every
    prompt again for each item that might go into it. Where a tokenizer merges two texts at their
    border, a sum differs from the real count by a token or two. `PromptTokenizer` cuts the rare
    prompt that is too long in spite of it.
    """
    # Without their history, prompts differ in the attributes only.
    rest = users.select("attributes").unique()
    empty = rest.select(_user_text(schema, template, pl.lit("-"))).to_series().to_list()
    lengths = pl.Series(tokens.prompt_lengths(empty, template.system), dtype=pl.Int64)
    rest = rest.with_columns(available=tokens.max_tokens - lengths)
    user_tokens = users.join(rest, on="attributes", how="left", maintain_order="left").select(
        "available", user=pl.col("index").cast(pl.Int32)
    )
    line = template.history.replace("{items}", "")
    words = template.words_of(schema.labels[0])
    lines = [line.format(scenario=s.name, word=word) for s in schema.scenarios for word in words]
    line_tokens = max(tokens.count(lines)) + 1  # 1 for the line break
    return HistoryBudget(user_tokens, item_tokens, line_tokens)


def check_user_keys(folder: AnyPath) -> None:
    """Refuses users of whom some have no key, or two the same.

    Raises:
        FileNotFoundError: there are no users.
        ValueError: a key is null or repeated.
    """
    file = folder / "users.parquet"
    key = _as_key(read_columns(file, ["user_key"])["user_key"])
    if key.null_count():
        raise ValueError(
            f"{file}: user_key must not be null; it is in row {key.is_null().arg_max()}: give the "
            f"user a key."
        )
    if key.n_unique() < len(key):
        repeated = key.filter(key.is_duplicated())[0]
        raise ValueError(
            f"{file}: user_key must differ in every row; {repeated!r} is there more than once: "
            f"merge its rows."
        )


def _read_users(
    folder: AnyPath, schema: Schema, template: Template, keys: range | None
) -> pl.DataFrame:
    """Reads columns index, key and attributes (a sentence, empty for a user without any)."""
    columns = schema.text.user_attributes
    users = read_columns(folder / "users.parquet", ["user_key", *columns], keys)
    key = _as_key(users["user_key"])
    return _with_index(users.select(key=key, attributes=_attributes(columns, template)), keys)


def _as_key(values: pl.Series) -> pl.Series:
    """Converts keys to a type of a knowledge store: int64 or string."""
    return values.cast(pl.Int64 if values.dtype.is_integer() else pl.String)


def _attributes(columns: list[str], template: Template) -> pl.Expr:
    """Returns the sentence about a user's attributes; empty if all of them are."""
    parts = []
    for column in columns:
        value = clean(column)
        label = column.removesuffix("_name").replace("_", " ")
        parts.append(pl.when(value != "").then(pl.lit(f"{label} ") + value))
    if not parts:
        return pl.lit("")
    joined = pl.concat_str(parts, separator=", ", ignore_nulls=True)
    sentence = fill(template.attributes, attributes=joined)
    return pl.when(joined != "").then(sentence).otherwise(pl.lit(""))
