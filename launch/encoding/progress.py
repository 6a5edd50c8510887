"""Display of `msrec encode`: a bar on a terminal, a line every few seconds in a log."""

import time
from typing import Self

from rich import progress as rich_progress
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from msrec.launch.console import PlainConsole
from msrec.launch.encoding.speed import Progress, Work


class EncodeProgress:
    """Prompts per second and the time left.

    Args:
        is_shown: False on ranks other than 0, which print nothing.
    """

    LINE_EVERY_S = 10.0

    def __init__(self, is_shown: bool) -> None:
        self._console = PlainConsole(stderr=True)
        is_terminal = self._console.is_terminal
        self._prints_lines = is_shown and not is_terminal
        self._bar = rich_progress.Progress(
            TextColumn("encode"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            console=self._console,
            disable=not (is_shown and is_terminal),
        )

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task("encode", total=None, line="")
        self._last_line = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Shows how much is done, how fast, and the forecast."""
        done, total, seconds = progress.done, progress.total, progress.seconds
        parts = []
        if progress.encoded and seconds:  # a source without a model has no time in it
            rates = progress.encoded / seconds, progress.tokens / seconds
            parts.append("{:.1f} prompts/s  {:,.0f} tokens/s".format(*rates))
        if progress.left_s is not None:
            parts.append(f"{progress.left_s:.0f} s left")
        line = "  ".join(parts)
        self._bar.update(self._task, completed=done, total=total, line=line)
        now = time.perf_counter()
        is_due = now - self._last_line >= self.LINE_EVERY_S or done == total
        if self._prints_lines and is_due and progress.encoded:
            self._last_line = now
            self._console.print(f"encode {done:,}/{total:,}  {line}".rstrip(), soft_wrap=True)


def speed_line(work: Work) -> str:
    """Returns a line with the speed of an encoding."""
    per_s = 1 / work.seconds
    return (
        f"{work.prompts * per_s:.1f} prompts/s, {work.tokens * per_s:,.0f} tokens/s "
        f"({work.shared_tokens / max(work.tokens, 1):.0%} of them in shared prefixes, computed "
        f"once), {work.matmul_share:.0%} of the speed of a large matrix product"
    )
