"""A console whose tables keep their width if the output is not a terminal."""

import sys

from rich.console import Console

LOG_WIDTH = 120
"""Columns of output to a file, for which rich would assume 80."""


def wide_console() -> Console:
    """Returns a console as wide as the terminal or, without one, `LOG_WIDTH`."""
    return Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
