"""Consoles that show text from data as it is, without markup or control characters; sizes."""

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from msrec.data.io.names import visible

LOG_WIDTH = 120
"""Columns of output to a file, for which rich would assume 80."""


class PlainConsole(Console):
    """Console without markup and emoji codes, that escapes control characters except line ends."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Returns the text of a string that is printed, alone or in a table."""
        return super().render_str(visible(text, lines=True), **options)


def wide_console() -> Console:
    """Returns a console as wide as the terminal or, without one, `LOG_WIDTH`.

    Tables keep their width if the output is not a terminal.
    """
    return PlainConsole(width=None if sys.stdout.isatty() else LOG_WIDTH)


def format_bytes(num_bytes: float) -> str:
    """Returns a number of bytes with its unit.

    Example:
        >>> [format_bytes(n) for n in (512, 3 << 20, 5 << 29)]
        ['0.5 KiB', '3.0 MiB', '2.5 GiB']
    """
    unit, power = ("GiB", 30) if num_bytes >= 1 << 30 else ("MiB", 20)
    if num_bytes < 1 << 20:
        unit, power = "KiB", 10
    return f"{num_bytes / (1 << power):,.1f} {unit}"
