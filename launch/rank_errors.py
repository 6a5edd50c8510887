"""The first error of a job, from the files that torchrun has its ranks write."""

import json
from dataclasses import dataclass
from pathlib import Path

NO_RESTART = 78
"""Exit status of a rank that need not be started again (EX_CONFIG of sysexits.h)."""


@dataclass(frozen=True)
class Failure:
    """The first error of a job.

    Attributes:
        message: the rank's stack, or its sentence.
        folder: with the rank's stdout.log and stderr.log.
    """

    message: str
    folder: Path


def first_failure(log_dir: Path, since: float) -> Failure | None:
    """The error that came first, others being mostly what it did to other ranks.

    Args:
        log_dir: of torchrun, a folder a node and attempt.
        since: seconds since 1970; older errors are of an earlier submission.

    Returns:
        None where no rank left an error: it was killed, or there is none.
    """
    found = []
    for file in log_dir.glob("*/attempt_*/*/error.json"):
        if file.stat().st_mtime < since:
            continue
        try:
            message = json.loads(file.read_text())["message"]
        except (ValueError, KeyError, TypeError):
            continue  # being written
        stamp = message.get("extraInfo", {}).get("timestamp") if isinstance(message, dict) else None
        written = file.stat().st_mtime  # stamps are whole seconds
        failure = Failure(told(message), file.parent)
        found.append(((float(stamp or int(written)), written), failure))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def told(message: object) -> str:
    """What a rank wrote of its error: its stack, or without one its message.

    Example:
        >>> told({"message": "ValueError: x", "extraInfo": {"py_callstack": "ValueError: x "}})
        'ValueError: x'
        >>> told("Signal 9 (SIGKILL) received by PID 7")
        'Signal 9 (SIGKILL) received by PID 7'
    """
    if not isinstance(message, dict):
        return str(message)
    stack = message.get("extraInfo", {}).get("py_callstack")
    return str(stack or message.get("message")).strip()
