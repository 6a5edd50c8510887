"""Options of a scheduler that are lists of short texts, such as `CLAIM:/PATH`."""

import re
from collections.abc import Mapping
from typing import Any, List  # noqa: UP035

from torchx.specs import runopts
from torchx.specs.finder import ComponentValidationException

Forms = Mapping[str, tuple[str, str, str]]
"""Option -> the form of one text, its pattern, and what it is for."""
Given = dict[str, list[tuple[str, ...]]]
"""Option -> the parts of each text."""


def add_options(options: runopts, forms: Forms) -> None:
    """Let torchx take them, from its command line as `option=a;b`."""
    for name, (form, _, told) in forms.items():
        # torchx compares with typing's List.
        options.add(name, type_=List[str], help=f"{told}, each {form}")  # noqa: UP006


def parts(forms: Forms, cfg: Mapping[str, Any]) -> Given:
    """Take the texts apart.

    Raises:
        ComponentValidationException: one has another form; torchx shows its text and no stack.

    Example:
        >>> parts({"volumes": ("CLAIM:/PATH", "([a-z]+):(/.+)", "")}, {"volumes": ["data:/d"]})
        {'volumes': [('data', '/d')]}
    """
    return {
        name: [_parts(name, *forms[name][:2], text) for text in cfg.get(name) or []]
        for name in forms
    }


def _parts(option: str, form: str, pattern: str, text: str) -> tuple[str, ...]:
    match = re.fullmatch(pattern, text)
    if match is None:
        raise ComponentValidationException(
            f"each of the option {option} must be {form}; got {text!r}."
        )
    return match.groups()
