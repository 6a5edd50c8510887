"""Builds one self-contained HTML page from text, tables and figures; it opens without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from msrec.launch.reporting.figures import Figure

Rows = Sequence[Sequence[str]]
"""A table as text, its head first."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    muted: bool = False


@dataclass(frozen=True)
class Markdown:
    """Text in Markdown; its HTML is not escaped, so it must come from this program."""

    kind: ClassVar[str] = "markdown"
    source: str

    @property
    def html(self) -> Markup:
        """The text as HTML, with scrolling tables."""
        html = MarkdownIt("commonmark").enable("table").render(self.source)
        html = html.replace("<table>", '<div class="table"><table>')
        return Markup(html.replace("</table>", "</table></div>"))


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Text in a fixed-width font; `wrap` breaks long lines, which scroll otherwise."""

    kind: ClassVar[str] = "code"
    text: str
    wrap: bool = False


@dataclass(frozen=True)
class DataTable:
    """A table that sorts by a click on a column's head; a row named `all` stays on top, in bold.

    Columns are aligned to the right, for numbers, or to the left if `is_text`.
    """

    kind: ClassVar[str] = "table"
    rows: Rows
    caption: str = ""
    is_text: bool = False


@dataclass(frozen=True)
class Details:
    """Content under a line that opens and closes it."""

    kind: ClassVar[str] = "details"
    summary: str
    content: Sequence["Text | Code | DataTable"]
    is_open: bool = False


@dataclass(frozen=True)
class Figures:
    """Figures in a grid of one (`wide`) or two (`pair`) columns, or as many as fit (`small`)."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Figure]
    layout: str = "pair"
    title: str = ""


Block = Text | Markdown | Bullets | Code | DataTable | Details | Figures


@dataclass(frozen=True)
class Section:
    """Blocks under a heading; a section without blocks is not shown."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Tile:
    """A value in large type, with a label above and a remark below."""

    value: str
    remark: str
    label: str = ""


@dataclass(frozen=True)
class Page:
    """Content of a page; `title` names its browser tab."""

    title: str
    heading: str
    subtitle: str = ""
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()


def render_page(page: Page) -> str:
    """Returns the page as one HTML file that holds its styles, scripts and figures."""
    sections = [section for section in page.sections if section.blocks]
    figures = [
        {"data": figure["data"], "layout": figure["layout"]}
        for section in sections
        for block in section.blocks
        if isinstance(block, Figures)
        for figure in block.figures
    ]
    environment = Environment(
        loader=PackageLoader("msrec.launch.reporting", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html")
    return template.render(
        page=page, sections=sections, figures=figures, plotly=Markup(get_plotlyjs())
    )
