"""Finds the error of a job in the files that torchrun makes its ranks write."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

NO_RESTART = 78
"""Exit status of a rank that a restart cannot help (EX_CONFIG of sysexits.h)."""
MISTAKE, FAULT = 2, 1
"""Exit statuses: of a user's mistake, after which ranks do not start again, and of other errors."""
MAY_PASS = "may_pass"
"""Attribute of an error that another start of the ranks may not have."""
REFUSAL = "RepeatedFailure"
"""Name of the error of a start that refuses the step at which earlier ones failed."""


@dataclass(frozen=True)
class Failure:
    """An error of a rank.

    Attributes:
        message: the rank's stack, or its message.
        folder: the rank's folder, with stdout.log and stderr.log.
        time: time of writing, in seconds since 1970.
        stamp: time of the error in whole seconds, by the rank's clock.
    """

    message: str
    folder: Path
    time: float = 0.0
    stamp: float = 0.0


def last_failure(log_dir: Path, since: float) -> Failure | None:
    """Returns the first error of the last attempt that failed; later ones are mostly its effect.

    An attempt may only refuse a step that failed before. Then the error of that step is returned,
    with the time of the refusal.

    Args:
        log_dir: of torchrun, with one folder per agent and attempt.
        since: seconds since 1970; older errors are of an earlier submission.

    Returns:
        None if no rank left an error: it was killed, or there is none.
    """
    every = [each for each in _failures(log_dir) if each.time >= since]
    if not every:
        return None
    refused_at = max((each.time for each in every if REFUSAL in each.message), default=0.0)
    failures = [each for each in every if REFUSAL not in each.message] or every
    last = max(failures, key=lambda failure: failure.time)
    attempt = last.folder.parent
    # An agent makes the folders of an attempt when the ranks of the attempt before are gone.
    began = attempt.stat().st_mtime
    of_attempt = [
        each
        for each in failures
        if each.folder.parent == attempt
        or (each.folder.parents[1] != attempt.parent and each.time >= began)
    ]
    # Stamps are whole seconds; the time of writing decides between equal ones.
    first = min(of_attempt, key=lambda failure: (failure.stamp, failure.time))
    return first if refused_at < last.time else replace(first, time=refused_at)


def _failures(log_dir: Path) -> Iterator[Failure]:
    for file in log_dir.glob("*/attempt_*/*/error.json"):
        written = file.stat().st_mtime
        try:
            message = json.loads(file.read_text())["message"]
        except (ValueError, KeyError, TypeError):
            continue  # being written
        stamp = message.get("extraInfo", {}).get("timestamp") if isinstance(message, dict) else None
        yield Failure(error_text(message), file.parent, written, float(stamp or int(written)))


def error_text(message: object) -> str:
    """Returns the stack that a rank wrote of its error, or its message without one.

    Example:
        >>> error_text({"message": "ValueError: x", "extraInfo": {"py_callstack": "File ..."}})
        'File ...'
        >>> error_text("Signal 9 (SIGKILL) received by PID 7")
        'Signal 9 (SIGKILL) received by PID 7'
    """
    if not isinstance(message, dict):
        return str(message)
    stack = message.get("extraInfo", {}).get("py_callstack")
    return str(stack or message.get("message")).strip()
