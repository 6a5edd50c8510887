"""`msrec zoo`: the models, their size, source and options, read from the code itself."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from torch import nn

from msrec.model.backbones import BACKBONES, backbone_options, make_backbone
from msrec.model.layers.feature_layout import FeatureLayout
from msrec.model.llm_feature import KnowledgeFeature, KnowledgeMatch
from msrec.model.meta import ScenarioMeta, UserMeta

FIELDS = FeatureLayout(("user_id", "item_id", *(f"feature_{i}" for i in range(6))), dim=16)
NUM_SCENARIOS = 3
SIZES = f"{len(FIELDS.names)} features of {FIELDS.dim} numbers, {NUM_SCENARIOS} scenarios, 1 label"
"""What parameters are counted for; tables apart."""
AROUND: dict[str, tuple[type[nn.Module], str]] = {
    "llm_feature.kind=concat": (KnowledgeFeature, "the user's LLM vector beside x, as a feature"),
    "llm_feature.kind=experts": (KnowledgeFeature, "the same through a small mixture of experts"),
    "llm_feature.kind=match": (KnowledgeMatch, "products of the user's LLM vector and the item's"),
    "meta.user=true": (UserMeta, "LLM4MSR: layers that the user's LLM vector generates, below"),
    "meta.scenario=true": (
        ScenarioMeta,
        "LLM4MSR: a network that the scenario's generates, beside",
    ),
}
"""What the LLM adds to any backbone, by the setting that turns it on."""


@dataclass(frozen=True)
class Entry:
    """What a class says of itself."""

    name: str
    cls: type[nn.Module]

    @cached_property
    def sections(self) -> dict[str, str]:
        """The docstring in parts: "" (before the first heading), Shape, Source, When, ..."""
        doc = inspect.cleandoc(self.cls.__doc__ or "")
        parts = re.split(r"^(Shape|Args|Raises|Source|When|Example):+\n", doc, flags=re.MULTILINE)
        found = {"": parts[0].strip()}
        for head, text in zip(parts[1::2], parts[2::2], strict=True):
            found[head] = inspect.cleandoc(text).strip()
        return found

    @property
    def line(self) -> str:
        """The first line of its file: the model in one sentence."""
        doc = inspect.getmodule(self.cls).__doc__ or ""
        whole = doc.partition("\n")[0].rstrip(".")
        name, _, rest = whole.partition(": ")
        return whole if " " in name else rest

    @property
    def paper(self) -> str:
        """Authors, place and year, and the arXiv number where there is one."""
        text = _flat(self.sections["Source"])
        found = re.match(r"[^(;]*?(arXiv [\d.]+\d|\d{4}( \([^)]*arXiv [\d.]+\))?|(?=;))", text)
        return found[0] if found else text

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """What a run may choose."""
        return backbone_options(self.name)

    @property
    def num_parameters(self) -> int:
        """At the default options and `SIZES`."""
        in_dim = FIELDS.end
        model = make_backbone(self.name, FIELDS, in_dim=in_dim, num_scenarios=NUM_SCENARIOS)
        return sum(parameter.numel() for parameter in model.parameters())


ENTRIES = [Entry(name, cls) for name, cls in BACKBONES.items()]


def zoo(name: str | None, console: Console | None = None) -> None:
    """Print the table of models, or all that is known of one.

    Raises:
        ValueError: there is no such model.
    """
    console = console or Console()
    if name is None:
        console.print(_models())
        console.print(_around())
        console.print(
            "msrec zoo NAME tells the rest; a run takes a model by backbone.name=NAME and its "
            "options by backbone.OPTION=VALUE. docs/zoo.md has all of it.",
            highlight=False,
        )
        return
    if name not in BACKBONES:
        raise ValueError(f"a model must be one of {', '.join(BACKBONES)}; got {name!r}.")
    console.print(Markdown("\n".join(_section(Entry(name, BACKBONES[name])))))


def page() -> str:
    """docs/zoo.md."""
    lines = [
        "# The zoo",
        "",
        "Written by `msrec zoo --page docs/zoo.md` from the docstrings; `msrec zoo` prints the "
        "table, `msrec zoo NAME` one model. A test holds every model against a row-by-row version "
        "of its formula (`tests/slow/NAME.py`).",
        "",
        "x is a row's looked-up vectors side by side, with what `interaction` makes of its dense "
        "features; s is its scenario. A model gives logits, to which the LLM parts at the end of "
        "this page may add.",
        "",
        f"Parameters: dense ones, at the default options, for {SIZES}.",
        "",
        "| model | in one line | parameters | source |",
        "|---|---|---|---|",
        *(
            f"| [{e.name}](#{e.name}) | {e.line} | {e.num_parameters:,} | {e.paper} |"
            for e in ENTRIES
        ),
    ]
    for entry in ENTRIES:
        lines += ["", *_section(entry)]
    lines += ["", "## With the LLM", "", "Around any of them:", ""]
    lines += ["| setting | what it does |", "|---|---|"]
    lines += [f"| `{setting}` | {what} |" for setting, (_, what) in AROUND.items()]
    for cls in dict.fromkeys(cls for cls, _ in AROUND.values()):
        entry = Entry("", cls)
        lines += ["", f"### {cls.__name__}", "", entry.sections[""], "", _source(entry)]
    return "\n".join(lines) + "\n"


def write_page(path: Path) -> None:
    """Write docs/zoo.md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page())


def _models() -> Table:
    table = Table(title="msrec zoo", caption=f"dense parameters for {SIZES}")
    for column in ("model", "in one line", "parameters", "source"):
        table.add_column(
            column, justify="right" if column == "parameters" else "left", overflow="fold"
        )
    for entry in ENTRIES:
        table.add_row(entry.name, entry.line, f"{entry.num_parameters:,}", entry.paper)
    return table


def _around() -> Table:
    table = Table("setting", "what it does", title="with the LLM, around any of them")
    for setting, (_, what) in AROUND.items():
        table.add_row(setting, what)
    return table


def _section(entry: Entry) -> Iterator[str]:
    yield f"## {entry.name}"
    yield ""
    yield entry.sections[""]
    yield ""
    yield f"**When**: {_flat(entry.sections['When'])}"
    yield ""
    yield _source(entry)
    yield ""
    yield f"{entry.num_parameters:,} parameters. Options, as `backbone.OPTION`:"
    yield ""
    yield "| option | default |"
    yield "|---|---|"
    for name, option in entry.options.items():
        yield f"| {name} | {_shown(option.default)} |"


def _source(entry: Entry) -> str:
    return f"**Source**: {_flat(entry.sections['Source'])}"


def _flat(text: str) -> str:
    return " ".join(text.split())


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)
