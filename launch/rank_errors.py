"""Finds the first error of a job in the files that torchrun makes its ranks write."""

import json
from dataclasses import dataclass
from pathlib import Path

NO_RESTART = 78
"""Exit status of a rank that a restart cannot help (EX_CONFIG of sysexits.h)."""


@dataclass(frozen=True)
class Failure:
    """The first error of a job.

    Attributes:
        message: the rank's stack, or its message.
        folder: the rank's folder, with stdout.log and stderr.log.
    """

    message: str
    folder: Path


def first_failure(log_dir: Path, since: float) -> Failure | None:
    """Returns the earliest error; later ones are mostly its effect on other ranks.

    Args:
        log_dir: of torchrun, with one folder per node and attempt.
        since: seconds since 1970; older errors are of an earlier submission.

    Returns:
        None if no rank left an error: it was killed, or there is none.
    """
    failures = []
    for file in log_dir.glob("*/attempt_*/*/error.json"):
        written = file.stat().st_mtime
        if written < since:
            continue
        try:
            message = json.loads(file.read_text())["message"]
        except (ValueError, KeyError, TypeError):
            continue  # being written
        stamp = message.get("extraInfo", {}).get("timestamp") if isinstance(message, dict) else None
        # Stamps are whole seconds; the time of writing decides between equal ones.
        order = (float(stamp or int(written)), written)
        failures.append((order, Failure(error_text(message), file.parent)))
    return min(failures, key=lambda failure: failure[0])[1] if failures else None


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
