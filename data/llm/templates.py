"""Prompt templates: read from templates.yaml, checked, hashed and filled in."""

import hashlib
import json
from functools import cache
from pathlib import Path
from string import Formatter

import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from msrec.data.io.validation import first_error

TEMPLATES_FILE = Path(__file__).with_name("templates.yaml")

FIELDS = {
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
"""Template text -> the names that may stand in braces."""


class Template(BaseModel):
    """The texts of all prompts, and how much history they show; see templates.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    @field_validator(*FIELDS)
    @classmethod
    def _known_names(cls, text: str, info: object) -> str:
        name = getattr(info, "field_name", "")
        unknown = {part[1] for part in Formatter().parse(text) if part[1] is not None}
        unknown -= FIELDS[name]
        if unknown:
            known = ", ".join(sorted(FIELDS[name]))
            raise ValueError(f"{{{sorted(unknown)[0]}}} is not one of the names it knows: {known}")
        return text

    @field_validator("words")
    @classmethod
    def _has_default(cls, words: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
        if "default" not in words:
            raise ValueError("`default` must be one of the labels")
        return words

    @property
    def sha256(self) -> str:
        """Hash of everything above but `datasets`, which a store records."""
        told = self.model_dump(mode="json", exclude={"datasets"})
        text = json.dumps(told, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def words_of(self, label: str) -> tuple[str, str]:
        """The words for label 1 and label 0."""
        return self.words.get(label, self.words["default"])


@cache
def load_template(name: str, file: Path = TEMPLATES_FILE) -> Template:
    """The template of that name.

    Raises:
        KeyError: no such template; names those there are.
        ValueError: the file does not hold a template; names the file and the field.

    Example:
        >>> load_template("default").user_question
        'What interests this user in each scenario and across them?'
    """
    entries = yaml.safe_load(file.read_text())
    if name not in entries:
        raise KeyError(f"{file.name} must hold template {name!r}; it holds {', '.join(entries)}.")
    try:
        return Template.model_validate(entries[name])
    except ValidationError as error:
        raise ValueError(f"{file.name}: {name}.{first_error(error)}.") from None


def template_of(dataset: str, name: str = "auto", file: Path = TEMPLATES_FILE) -> str:
    """The name of the template for a data set: `name` itself unless that is `auto`.

    Example:
        >>> template_of("ml1m"), template_of("my-app"), template_of("ml1m", "default")
        ('movielens', 'default', 'default')
    """
    if name != "auto":
        return name
    entries = yaml.safe_load(file.read_text())
    fitting = (n for n, entry in entries.items() if dataset in entry.get("datasets", []))
    return next(fitting, "default")


def fill(text: str, **values: pl.Expr) -> pl.Expr:
    """A template text as a polars expression; a null value counts as empty.

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
