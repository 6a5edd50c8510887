"""The terminal of the CLI: a console for results, logging to stderr."""

import logging
import os

from rich.console import Console
from rich.logging import RichHandler

from msrec.launch.console import wide_console
from msrec.launch.distributed import quiet_libraries

console = wide_console()


def is_main() -> bool:
    """Returns whether this process is rank 0, or runs alone."""
    return int(os.environ.get("RANK", 0)) == 0


def log_to_terminal() -> None:
    """Logs to stderr: information on rank 0, errors on every rank."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("msrec").setLevel(logging.INFO if is_main() else logging.ERROR)
    quiet_libraries()


def say(text: str) -> None:
    """Prints one line on rank 0, without cutting or colouring it."""
    if is_main():
        console.print(text, markup=False, highlight=False, soft_wrap=True)
