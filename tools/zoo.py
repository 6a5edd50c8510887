"""`msrec zoo`: the models with their size, source and options, read from the code itself."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from torch import nn

from msrec.data.io.atomic_files import write_text
from msrec.data.io.outputs import FileKind, check_output, contains
from msrec.launch.config.backbone_section import BACKBONE_OPTIONS
from msrec.launch.console import PlainConsole
from msrec.model.backbone import BackboneShape, FeatureLayout
from msrec.model.backbones import BACKBONES, backbone_options, make_backbone
from msrec.model.llm_feature import KnowledgeFeature, KnowledgeMatch
from msrec.model.meta import ScenarioMeta, UserMeta
from msrec.model.sequence_encoders import SEQUENCE_ENCODERS

LAYOUT = FeatureLayout(("user_id", "item_id", *(f"feature_{i}" for i in range(6))), dim=16)
SHAPE = BackboneShape(LAYOUT.end, num_scenarios=3, layout=LAYOUT)
TWO_LABELS = replace(SHAPE, num_tasks=2, parents=(None, 0))
"""`SHAPE` for models that need a second label, which exists only where the first is 1."""
SIZES = "8 features of 16 numbers, 3 scenarios, 1 label (2 for esmm)"
"""The shapes in words: the sizes for which parameters are counted, without tables."""
LLM_PARTS: dict[str, tuple[type[nn.Module], str]] = {
    "llm_feature.kind=concat": (KnowledgeFeature, "the user's LLM vector as a feature in x"),
    "llm_feature.kind=experts": (KnowledgeFeature, "the same through a small mixture of experts"),
    "llm_feature.kind=match": (KnowledgeMatch, "products of the user's LLM vector and the item's"),
    "meta.user=true": (
        UserMeta,
        "LLM4MSR: layers generated from the user's LLM vector, below the model",
    ),
    "meta.item=true": (UserMeta, "the same from the item's LLM vector, after the user's layers"),
    "meta.scenario=true": (
        ScenarioMeta,
        "LLM4MSR: a network generated from the scenario's LLM vector, in parallel",
    ),
}
"""Parts that add LLM vectors to any backbone, by the setting that turns them on."""
NOTATION = {
    "x": "vector of a row: its embeddings, then the output of `interaction` for dense features",
    "s, S": "scenario of the row, and the number of scenarios",
    "t, T": "label (task), and the number of labels; left out where a formula is the same for all",
    "e_s": "embedding of the scenario",
    "`*`": "element-wise product",
    "stopgrad": "value through which no gradient flows",
    "v": "LLM vector from the knowledge store, standardised",
    "z": "code of v: `meta.rank` numbers, tanh(A v + a). W(z) and b(z) are linear in z",
}
"""Symbols of the formulas in the docstrings."""


@dataclass(frozen=True)
class Entry:
    """Class of a model and what its docstring says."""

    name: str
    cls: type[nn.Module]

    @cached_property
    def sections(self) -> dict[str, str]:
        """Docstring in parts: "" (before the first heading), Shape, Source, When, ..."""
        doc = inspect.cleandoc(self.cls.__doc__ or "")
        parts = re.split(r"^(Shape|Args|Raises|Source|When|Example):+\n", doc, flags=re.MULTILINE)
        sections = {"": parts[0].strip()}
        for head, text in zip(parts[1::2], parts[2::2], strict=True):
            sections[head] = inspect.cleandoc(text).strip()
        return sections

    @property
    def line(self) -> str:
        """First line of the docstring: the model in one sentence."""
        return self.sections[""].partition("\n")[0].rstrip(".")

    @property
    def paper(self) -> str:
        """Authors, place and year, and the arXiv number if there is one."""
        text = _flat(self.sections["Source"])
        match = re.match(r"[^(;]*?(arXiv [\d.]+\d|\d{4}( \([^)]*arXiv [\d.]+\))?|(?=;))", text)
        return match[0] if match else text

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """Options of a run's config, by name."""
        return backbone_options(self.name)

    @property
    def num_parameters(self) -> int:
        """Number of parameters at the default options and `SIZES`."""
        shape = TWO_LABELS if BACKBONES[self.name].entire_space else SHAPE
        model = make_backbone(self.name, shape)
        return sum(parameter.numel() for parameter in model.parameters())


ENTRIES = [Entry(name, cls) for name, cls in BACKBONES.items()]
SEQUENCE_ENTRIES = [Entry(name, cls) for name, cls in SEQUENCE_ENCODERS.items()]


def zoo(name: str | None, console: Console | None = None) -> None:
    """Prints the table of models, or everything about one.

    Raises:
        ValueError: there is no such model.
    """
    console = console or PlainConsole()
    if name is None:
        console.print(_models_table())
        console.print(_llm_table())
        console.print(_sequence_table())
        console.print(
            "msrec zoo NAME prints all about one model. A run uses it by backbone.name=NAME, with "
            "options as backbone.OPTION=VALUE. docs/reference/models.md lists all models.",
            highlight=False,
        )
        return
    if name not in BACKBONES:
        raise ValueError(f"a model must be one of {', '.join(BACKBONES)}; got {name!r}.")
    console.print(Markdown("\n".join(_section(Entry(name, BACKBONES[name])))))


def page() -> str:
    """Returns the text of docs/reference/models.md."""
    lines = [
        "# Models",
        "",
        _wrapped(
            "A run trains one model, chosen by `backbone.name`. This page helps you to choose it "
            "and lists its options. It is generated from the code by "
            "`msrec zoo --page docs/reference/models.md`."
        ),
        "",
        "```sh",
        "msrec zoo                  # list the models",
        "msrec zoo mmoe             # describe one model",
        "msrec train conf.yaml backbone.name=mmoe backbone.num_experts=8",
        "```",
        "",
        _wrapped(
            "Start with `shared_bottom`. Compare it with `mlp`, which ignores scenarios, and with "
            "`separate`, which shares nothing between them. The paragraph **When** of each model "
            "describes the data that it suits. The [benchmark](../results/benchmark.md) has the "
            "results of all models on public data sets. To write your own, see "
            "[Adding a model](../guides/adding-a-model.md)."
        ),
        "",
        "## Notation",
        "",
        "| symbol | meaning |",
        "|---|---|",
        *(f"| {symbol} | {meaning} |" for symbol, meaning in NOTATION.items()),
        "",
        _wrapped(
            "A model returns one output per label: a logit, or for a regression label its "
            "standardised value. Each scenario and label has its own tower where "
            "the formula has the index st; otherwise each label has its own last layer. The "
            "[LLM parts](#llm-parts) may change the input x or add to the logits. The tests "
            "compare every model with a row-by-row version of its formula (`tests/model/slow/`)."
        ),
        "",
        "## List of models",
        "",
        _wrapped(
            f"Parameters are counted without embedding tables, at the default options, for {SIZES}."
        ),
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
    lines += ["", "## LLM parts", "", "Any model can be combined with these parts:", ""]
    lines += ["| setting | what it adds |", "|---|---|"]
    lines += [f"| `{setting}` | {text} |" for setting, (_, text) in LLM_PARTS.items()]
    for cls in dict.fromkeys(cls for cls, _ in LLM_PARTS.values()):
        entry = Entry("", cls)
        lines += ["", f"### {cls.__name__}", "", entry.sections[""], "", _source(entry)]
    lines += ["", *_sequence_sections()]
    return "\n".join(lines) + "\n"


def write_page(path: Path) -> None:
    """Writes docs/reference/models.md."""
    check_output(path, FileKind("the page of msrec zoo", contains("`msrec zoo --page")))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page())


def _models_table() -> Table:
    table = Table(title="msrec zoo", caption=f"dense parameters for {SIZES}")
    for column in ("model", "in one line", "parameters", "source"):
        table.add_column(
            column, justify="right" if column == "parameters" else "left", overflow="fold"
        )
    for entry in ENTRIES:
        table.add_row(entry.name, entry.line, f"{entry.num_parameters:,}", entry.paper)
    return table


def _llm_table() -> Table:
    table = Table("setting", "what it adds", title="LLM parts, for any model")
    for setting, (_, text) in LLM_PARTS.items():
        table.add_row(setting, text)
    return table


def _sequence_table() -> Table:
    table = Table("setting", "what it adds", "source", title="Sequence encoders, for any model")
    for entry in SEQUENCE_ENTRIES:
        table.add_row(f"sequence.encoder={entry.name}", entry.line, entry.paper)
    return table


def _sequence_sections() -> Iterator[str]:
    yield "## Sequence encoders"
    yield ""
    yield _wrapped(
        "With `sequence.protocol`, each row has the earlier events of its user, see "
        "`msrec histories`. An encoder turns them and the row's item into columns that are "
        "appended to x of any model. It reads learned item vectors of a table `sequence_item`, "
        "each plus a vector of the event's label and one of its scenario."
    )
    yield ""
    yield "| setting | what it adds |"
    yield "|---|---|"
    for entry in SEQUENCE_ENTRIES:
        yield f"| `sequence.encoder={entry.name}` | {entry.line} |"
    for entry in SEQUENCE_ENTRIES:
        yield from ("", f"### {entry.cls.__name__}", "", entry.sections[""], "", _source(entry))


def _section(entry: Entry) -> Iterator[str]:
    meanings = BACKBONE_OPTIONS[entry.name].model_fields
    yield f"## {entry.name}"
    yield ""
    yield entry.sections[""]
    yield ""
    yield _wrapped(f"**When**: {entry.sections['When']}")
    yield ""
    yield _source(entry)
    yield ""
    yield f"{entry.num_parameters:,} parameters. Options, as `backbone.OPTION`:"
    yield ""
    yield "| option | default | meaning |"
    yield "|---|---|---|"
    for name, option in entry.options.items():
        yield f"| `{name}` | {_shown(option.default)} | {meanings[name].description} |"


def _source(entry: Entry) -> str:
    return _wrapped(f"**Source**: {entry.sections['Source']}")


def _wrapped(text: str) -> str:
    return textwrap.fill(_flat(text), 100, break_long_words=False, break_on_hyphens=False)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)
