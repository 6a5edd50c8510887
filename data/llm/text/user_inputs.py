"""Inputs of the prompts of users: training rows, and texts of items with their tokens.

One process reads them once for all users. For many workers they are prepared in a folder::

    rows/NNNNNN.parquet   rows of a file of the training rows, in the order of their users
    items/NNNNNN.arrow    texts and tokens of some items, mapped into memory
    inputs.json           counts of the texts, and whether the rows have an order
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import polars as pl

from msrec.data.io.atomic_files import atomic_path, write_json
from msrec.data.io.mapped_tables import read_mapped, write_mapped
from msrec.data.io.paths import AnyPath
from msrec.data.llm.text.history_rows import (
    history_rows,
    is_of,
    is_ordered,
    sorted_rows,
    training_files,
    write_sorted_rows,
)
from msrec.data.llm.text.history_text import ITEM_SEPARATOR, item_texts
from msrec.data.llm.text.templates import Template
from msrec.data.llm.text.tokenization import PromptTokenizer
from msrec.data.schema import Schema

ITEMS_PART = 1 << 18
"""Items whose texts a worker counts at a time."""


@dataclass(frozen=True)
class UserInputs:
    """Inputs of the prompts of some users.

    Args:
        rows: training rows of the users, see `history_rows`.
        items: columns text (null for an item without one) and, with a tokenizer, tokens (int64, of
            the text and its separator), of all items.
        counts: items without a text, and titles that are cut.
        is_ordered: whether the training rows have times that differ.
    """

    rows: pl.DataFrame
    items: pl.DataFrame
    counts: dict[str, int]
    is_ordered: bool

    @classmethod
    def read(
        cls, folder: AnyPath, schema: Schema, template: Template, tokens: PromptTokenizer | None
    ) -> "UserInputs":
        """Reads the inputs of all users from a dataset."""
        items, counts = _items(folder, schema, template, tokens, None)
        rows = history_rows(folder, schema, items.height, training_files(folder))
        return cls(rows, items, counts, is_ordered(folder, schema))

    def of_users(self, users: range) -> "UserInputs":
        """Returns the inputs of some users."""
        return replace(self, rows=self.rows.filter(is_of(users)))


class InputPart(NamedTuple):
    """Training rows of a file, with the number of the first one, or a range of items."""

    number: int
    rows: tuple[AnyPath, int] | None
    items: range | None


@dataclass(frozen=True)
class PreparedInputs:
    """Inputs in a folder, from which many workers read those of a block of users."""

    folder: Path

    def parts(self, dataset: AnyPath, schema: Schema) -> list[InputPart]:
        """Returns the parts that are not there yet."""
        files = training_files(dataset)
        parts = [InputPart(number, file, None) for number, file in enumerate(files)]
        starts = range(0, schema.num_items, ITEMS_PART)
        for number, start in enumerate(starts):
            items = range(start, min(start + ITEMS_PART, schema.num_items))
            parts.append(InputPart(number, None, items))
        for name in ("rows", "items"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        return [part for part in parts if not self._file(part).is_file()]

    def write(
        self,
        part: InputPart,
        dataset: AnyPath,
        schema: Schema,
        template: Template,
        tokens: PromptTokenizer,
    ) -> None:
        """Writes a part, whole or not at all."""
        file = self._file(part)
        if part.rows is not None:
            rows = history_rows(dataset, schema, schema.num_items, [part.rows])
            write_sorted_rows(rows, file)
            return
        items, counts = _items(dataset, schema, template, tokens, part.items)
        write_json(file.with_suffix(".json"), counts)
        with atomic_path(file) as scratch:
            write_mapped(scratch, items)

    def finish(self, dataset: AnyPath, schema: Schema) -> None:
        """Writes what all blocks share, after all parts."""
        counts: dict[str, int] = {}
        for file in sorted((self.folder / "items").glob("*.json")):
            for name, count in json.loads(file.read_text()).items():
                counts[name] = counts.get(name, 0) + count
        state = {"counts": counts, "is_ordered": is_ordered(dataset, schema)}
        write_json(self.folder / "inputs.json", state)

    def read(self, users: range) -> UserInputs:
        """Reads the inputs of some users; the items are mapped into memory."""
        items = pl.concat([read_mapped(path) for path in self._items_files()], rechunk=False)
        state = json.loads((self.folder / "inputs.json").read_text())
        return UserInputs(sorted_rows(self.folder / "rows", users), items, **state)

    def _items_files(self) -> list[Path]:
        return sorted((self.folder / "items").glob("*.arrow"))

    def _file(self, part: InputPart) -> Path:
        kind, ending = ("items", "arrow") if part.rows is None else ("rows", "parquet")
        return self.folder / kind / f"{part.number:06d}.{ending}"


def _items(
    folder: AnyPath,
    schema: Schema,
    template: Template,
    tokens: PromptTokenizer | None,
    keys: range | None,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Returns the texts of items, with their tokens if there is a tokenizer, and their counts."""
    items, counts = item_texts(folder, schema, template, keys)
    items = items.select("text")
    if tokens is None:
        return items, counts
    # A tokenizer may join the separator to the text after it, so both forms are counted.
    separator_tokens = max(tokens.count([ITEM_SEPARATOR, f"{ITEM_SEPARATOR}a"]))
    texts = items["text"].drop_nulls().unique()
    lengths = pl.Series(tokens.count(texts.to_list()), dtype=pl.Int64)
    costs = pl.DataFrame({"text": texts, "tokens": lengths + separator_tokens})
    return items.join(costs, on="text", how="left", maintain_order="left"), counts
