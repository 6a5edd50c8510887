"""Consoles that show text from data as it is: names are neither markup nor control characters."""

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


def duration(seconds: float) -> str:
    """Returns a time in seconds, minutes or hours.

    Example:
        >>> duration(7.2), duration(150), duration(9000)
        ('7 s', '2.5 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def wide_console() -> Console:
    """Returns a console as wide as the terminal or, without one, `LOG_WIDTH`.

    Tables keep their width if the output is not a terminal.
    """
    return PlainConsole(width=None if sys.stdout.isatty() else LOG_WIDTH)
