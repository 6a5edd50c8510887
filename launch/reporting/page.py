"""Builds one self-contained HTML page from text, tables and figures; it opens without a network."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from msrec.launch.reporting.figures import Figure, Trace

Rows = list[list[str]]
"""A table as text, its head first."""


class Text(NamedTuple):
    """A paragraph, or code in a fixed-width font, whose long lines scroll or are `wrapped`."""

    text: str
    style: Literal["plain", "muted", "code", "wrapped"] = "plain"


class Markdown(NamedTuple):
    """Text in Markdown; it is not escaped, so it must come from this program."""

    source: str

    @property
    def html(self) -> Markup:
        """The text as HTML, with tables that scroll."""
        html = MarkdownIt("commonmark").enable("table").render(self.source)
        html = html.replace("<table>", '<div class="table"><table>')
        return Markup(html.replace("</table>", "</table></div>"))


class DataTable(NamedTuple):
    """A table that sorts by a click on a head; a row named `all` stays on top, in bold.

    Columns are aligned to the right, for numbers, or to the left if `is_text`.
    """

    rows: Rows
    caption: str = ""
    is_text: bool = False


class Details(NamedTuple):
    """Content under a line that opens and closes it."""

    summary: str
    content: Sequence[Text | DataTable]
    is_open: bool = False


class Figures(NamedTuple):
    """Figures in one column (`wide`), two columns (`pair`) or as many as fit (`small`)."""

    figures: Sequence[Figure]
    layout: Literal["wide", "pair", "small"] = "pair"
    title: str = ""


class Point(NamedTuple):
    """Content of an `Explorer` at one choice: tiles, text, and a list of traces for each figure."""

    tiles: "Sequence[Tile]"
    text: str
    traces: Sequence[Sequence[int]]
    """Numbers of the explorer's `traces`, which several points share."""


class Explorer(NamedTuple):
    """Sliders, one for each axis, that choose one of the points and show its content.

    `points` has one for each combination of values, the last axis changing fastest. Nothing is
    computed between them. All have the same number of tiles. `start` is the first one shown.
    """

    axes: Mapping[str, Sequence[str]]
    points: Sequence[Point]
    figures: Sequence[Figure]
    traces: Sequence[Trace]
    start: int = 0

    @property
    def positions(self) -> list[int]:
        """Position of each slider at the start."""
        rest, found = self.start, list[int]()
        for values in reversed(list(self.axes.values())):
            rest, position = divmod(rest, len(values))
            found.append(position)
        return found[::-1]


Block = Text | Markdown | DataTable | Details | Figures | Explorer


class Section(NamedTuple):
    """Blocks under a heading; a section without blocks is not shown."""

    heading: str
    blocks: Sequence[Block]


class Tile(NamedTuple):
    """A value in large type, with a label above and a remark below."""

    value: str
    remark: str
    label: str = ""


def render_page(
    title: str,
    heading: str,
    sections: Sequence[Section],
    subtitle: str = "",
    tiles: Sequence[Tile] = (),
) -> str:
    """Returns a page as one HTML file that holds its styles, scripts and figures.

    Args:
        title: title of the browser tab.
        heading: title on the page.
        sections: content of the page.
        subtitle: a line below the heading.
        tiles: values below the heading.
    """
    sections = [section for section in sections if section.blocks]
    blocks = [block for section in sections for block in section.blocks]
    grids = [block for block in blocks if isinstance(block, Figures | Explorer)]
    figures = [
        {"data": figure["data"], "layout": figure["layout"]}
        for grid in grids
        for figure in grid.figures
    ]
    explorers = [
        {
            "sizes": [len(values) for values in block.axes.values()],
            "points": [point._asdict() for point in block.points],
            "traces": block.traces,
        }
        for block in blocks
        if isinstance(block, Explorer)
    ]
    environment = Environment(
        loader=PackageLoader("msrec.launch.reporting", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    return environment.get_template("page.html").render(
        title=title,
        heading=heading,
        sections=sections,
        subtitle=subtitle,
        tiles=tiles,
        figures=figures,
        explorers=explorers,
        plotly=Markup(get_plotlyjs()),
    )
