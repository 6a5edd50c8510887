"""A console whose tables keep their width where there is no terminal."""

import sys

from rich.console import Console

LOG_WIDTH = 120
"""A log is not bound to the 80 columns that rich assumes where there is no terminal."""


def wide_console() -> Console:
    """As wide as the terminal, or `LOG_WIDTH`."""
    return Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
