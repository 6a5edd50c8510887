"""Runs lines in another process, so that one that hangs or crashes does not end the others."""

import multiprocessing
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from msrec.tools.bench.gpu.lines import Line
    from msrec.tools.bench.gpu.setting import Setting

State = Literal["ok", "FAILED", "skipped"]
START_S = 180.0
"""Longest time for the imports of a process."""
LONGEST_REASON = 600
"""Characters of an error in the table; the log has its stack."""


class Result(NamedTuple):
    """Result of a line."""

    name: str
    state: State
    text: str
    seconds: float
    figures: dict[str, Any] = {}


def run_lines(
    lines: Mapping[str, "Line"], setting: "Setting", log: Path, total_s: float
) -> Iterator[Result]:
    """Yields the result of each line, in order.

    One process runs all lines. After a line that takes too long or ends its process, a new one runs
    the rest.

    Args:
        lines: by name.
        setting: device and scratch folder.
        log: file for what the lines print.
        total_s: seconds for all lines together; those that are left then fail.
    """
    deadline = monotonic() + total_s
    worker: _Worker | None = None
    try:
        for name, line in lines.items():
            left = deadline - monotonic()
            if left <= 0:
                yield Result(name, "FAILED", f"not run: the {total_s:.0f} s of all are over", 0.0)
                continue
            worker = worker or _Worker(setting, log)
            started = monotonic()
            answer = worker.answer(name, line, min(line.limit_s, left))
            if not worker.is_alive:
                worker.stop()
                worker = None
            yield Result(name, *answer[:2], monotonic() - started, answer[2])
    finally:
        if worker is not None:
            worker.stop()


class _Worker:
    """A process that runs one line after the other."""

    def __init__(self, setting: "Setting", log: Path) -> None:
        # A fork would inherit CUDA's state and the locks of polars' threads.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(theirs, setting.kind, setting.folder, log)
        )
        self._process.start()
        theirs.close()
        self.is_alive = self._is_ready()

    def _is_ready(self) -> bool:
        """Waits for the imports; returns whether they ended well."""
        with suppress(EOFError):
            if self._pipe.poll(START_S):
                return bool(self._pipe.recv())
        return False

    def answer(self, name: str, line: "Line", limit_s: float) -> tuple[State, str, dict[str, Any]]:
        """Returns state, sentence and figures of a line; `is_alive` says if another may follow."""
        if not self.is_alive:
            return "FAILED", "its process did not start; see the log", {}
        self._pipe.send((name, line.run))
        try:
            if self._pipe.poll(limit_s):
                state, text, figures = self._pipe.recv()
                return state, text, figures
            reason = f"no result within {limit_s:.0f} s"
        except EOFError:
            self._process.join()
            code = self._process.exitcode or 0
            reason = f"its process ended with {f'signal {-code}' if code < 0 else f'status {code}'}"
        self.is_alive = False
        return "FAILED", reason, {}

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, kind: Any, folder: Path, log: Path) -> None:
    """Runs in the process: takes a line from the pipe, and sends its result."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from msrec.tools.bench.gpu.setting import Setting, Skipped

    import_module("msrec.tools.bench.gpu.lines")
    setting = Setting(kind, folder)
    pipe.send(True)
    with suppress(EOFError):
        while True:
            name, run = pipe.recv()
            print(f"== {name}", flush=True)
            answer: tuple[State, str, dict[str, Any]]
            try:
                answer = ("ok", *run(setting))
            except Skipped as reason:
                answer = ("skipped", str(reason), {})
            except Exception as error:  # noqa: BLE001 - the result of this line
                traceback.print_exc()
                answer = ("FAILED", f"{type(error).__name__}: {error}"[:LONGEST_REASON], {})
            pipe.send(answer)
