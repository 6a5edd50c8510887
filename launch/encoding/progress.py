"""Display of `msrec encode`: a bar on a terminal, a line every few seconds in a log."""

import time
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from msrec.launch.console import PlainConsole
from msrec.launch.encoding.speed import Speed


class EncodeProgress:
    """Prompts per second and the time left for this rank's share.

    Args:
        is_shown: False on ranks other than 0, which print nothing.
    """

    LINE_EVERY_S = 10.0

    def __init__(self, is_shown: bool) -> None:
        self._console = PlainConsole(stderr=True)
        is_terminal = self._console.is_terminal
        self._prints_lines = is_shown and not is_terminal
        self._bar = Progress(
            TextColumn("encode"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (is_shown and is_terminal),
        )

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task("encode", total=None, line="")
        self._started = self._last_line = time.perf_counter()
        self._first: int | None = None
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int, tokens: int) -> None:
        """Shows `done` of `total` prompts, and the tokens that this run has encoded."""
        now = time.perf_counter()
        if self._first is None:
            # The speed leaves out prompts of earlier runs, and the time to load the model.
            self._first, self._started = done, now
        new, seconds = done - self._first, max(now - self._started, 1e-9)
        line = f"{new / seconds:.1f} prompts/s  {tokens / seconds:,.0f} tokens/s"
        self._bar.update(self._task, completed=done, total=total, line=line)
        is_due = now - self._last_line >= self.LINE_EVERY_S or done == total
        if self._prints_lines and is_due and new:
            self._last_line = now
            left = (total - done) * seconds / new
            self._console.print(
                f"encode {done:,}/{total:,}  {line}  {left:.0f} s left", soft_wrap=True
            )


def speed_line(speed: Speed) -> str:
    """Returns a line with the speed of an encoding."""
    per_s = 1 / speed.seconds
    return (
        f"{speed.prompts * per_s:.1f} prompts/s, {speed.tokens * per_s:,.0f} tokens/s "
        f"({speed.shared_tokens / max(speed.tokens, 1):.0%} of them in shared prefixes, computed "
        f"once), {speed.matmul_share:.0%} of the matmul peak"
    )
