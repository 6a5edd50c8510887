"""The terminal of the CLI: a console for results, logging to stderr."""

import logging
import os

from rich.logging import RichHandler

from msrec.data.io.names import visible
from msrec.data.io.paths import redacted
from msrec.launch.console import PlainConsole, wide_console
from msrec.launch.distributed import quiet_libraries

console = wide_console()


class LineFormatter(logging.Formatter):
    """Formats a record as one line without secrets; a stack of an error keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, and the stack if there is one."""
        message = visible(redacted(record.getMessage()))
        line = logging.makeLogRecord({**vars(record), "msg": message, "args": None})
        return redacted(super().format(line))


def is_main() -> bool:
    """Returns whether this process is rank 0, or runs alone."""
    return int(os.environ.get("RANK", 0)) == 0


def log_to_terminal() -> None:
    """Logs to stderr: information on rank 0, errors on every rank."""
    handler = RichHandler(console=PlainConsole(stderr=True), show_path=False, show_time=False)
    handler.setFormatter(LineFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("msrec").setLevel(logging.INFO if is_main() else logging.ERROR)
    quiet_libraries()


def say(text: str) -> None:
    """Prints text on rank 0, without cutting or colouring it."""
    if is_main():
        console.print(text, markup=False, highlight=False, soft_wrap=True)
