"""Text of tables in the terminal."""

from rich.console import Console


def shown(*tables):
    """Returns what a wide terminal shows of some tables."""
    console = Console(width=200)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return capture.get()
