"""Prompt templates: read from templates.yaml, checked, hashed and filled in."""

import hashlib
import json
from functools import cache
from pathlib import Path
from string import Formatter

import polars as pl
from pydantic import Field, ValidationError, field_validator

from msrec.data.io.validation import StrictModel, first_error
from msrec.data.io.yaml_files import read_yaml

TEMPLATES_FILE = Path(__file__).with_name("templates.yaml")

PLACEHOLDERS = {
    "scenario_line": {"name", "description"},
    "scenario": {"name", "description", "app", "scenarios"},
    "attributes": {"attributes"},
    "history": {"scenario", "word", "items"},
    "intro": {"app", "scenarios"},
    "user": {"intro", "attributes", "history", "user_question"},
    "item": {"title", "details"},
    "item_plain": {"title"},
    "item_prompt": {"app", "item"},
}
"""Field of a template -> the names that its text may have in braces."""


class Template(StrictModel):
    """Texts of all prompts and the length of a history; templates.yaml explains each field."""

    version: int = Field(ge=1)
    datasets: list[str]
    system: str
    scenario_line: str
    scenario: str
    intro: str
    attributes: str
    history: str
    no_history: str
    user: str
    user_question: str
    item: str
    item_plain: str
    item_prompt: str
    item_details: int = Field(ge=0)
    words: dict[str, tuple[str, str]]
    positives: int = Field(ge=1)
    negatives: int = Field(ge=0)
    title_chars: int = Field(ge=8)

    @field_validator(*PLACEHOLDERS)
    @classmethod
    def _known_placeholders(cls, text: str, info: object) -> str:
        allowed = PLACEHOLDERS[getattr(info, "field_name", "")]
        used = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
        if unknown := sorted(used - allowed):
            raise ValueError(
                f"{{{unknown[0]}}} is not one of its placeholders: {', '.join(sorted(allowed))}"
            )
        return text

    @field_validator("words")
    @classmethod
    def _has_default(cls, words: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
        if "default" not in words:
            raise ValueError("`default` must be one of the labels")
        return words

    @property
    def sha256(self) -> str:
        """Hash of all fields except `datasets`, which is recorded in a store."""
        fields = self.model_dump(mode="json", exclude={"datasets"})
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def words_of(self, label: str) -> tuple[str, str]:
        """Returns the words for the values 1 and 0 of a label."""
        return self.words.get(label, self.words["default"])


@cache
def load_template(name: str, file: Path = TEMPLATES_FILE) -> Template:
    """Reads the template of that name.

    Raises:
        ValueError: there is no such template, the error lists the names that exist; or the file
            does not hold a valid template, the error names the field.

    Example:
        >>> load_template("default").user_question
        'What interests this user in each scenario and across them?'
    """
    entries = read_yaml(file)
    if name not in entries:
        raise ValueError(f"{file.name} must hold template {name!r}; it holds {', '.join(entries)}.")
    try:
        return Template.model_validate(entries[name])
    except ValidationError as error:
        raise ValueError(f"{file.name}: {name}.{first_error(error)}.") from None


def template_of(dataset: str, name: str = "auto", file: Path = TEMPLATES_FILE) -> str:
    """Returns the template's name for a dataset: `name` itself, unless that is `auto`.

    Example:
        >>> template_of("ml1m"), template_of("my-app"), template_of("ml1m", "default")
        ('movielens', 'default', 'default')
    """
    if name != "auto":
        return name
    entries = read_yaml(file)
    matching = (n for n, entry in entries.items() if dataset in entry.get("datasets", []))
    return next(matching, "default")


def fill(text: str, **values: pl.Expr) -> pl.Expr:
    """Returns a template text as a polars expression; null values count as empty.

    Example:
        >>> frame = pl.DataFrame({"t": ["Heat", "{x}"]})
        >>> frame.select(fill("<{title}>", title=pl.col("t"))).to_series().to_list()
        ['<Heat>', '<{x}>']
    """
    parts = []
    for literal, name, _, _ in Formatter().parse(text):
        parts.append(pl.lit(literal))
        if name is not None:
            parts.append(values[name].fill_null(""))
    return pl.concat_str(parts)
