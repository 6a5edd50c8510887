"""States of Slurm jobs, from squeue or sacct.

`msrec launch status` imports this file and therefore not torchx, which would take a third of its
time.
"""

import shutil
import subprocess
from collections.abc import Collection
from typing import NamedTuple

SLURM_STATES = {
    "PENDING": "pending",
    "REQUEUED": "pending",
    "RESIZING": "pending",
    "SUSPENDED": "pending",
    "RUNNING": "running",
    "COMPLETED": "succeeded",
    "CANCELLED": "cancelled",
    **dict.fromkeys(
        (
            *("BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
            *("REVOKED", "TIMEOUT"),
        ),
        "failed",
    ),
}
"""State of Slurm -> that of torchx, in lower case; a test compares them with torchx's own."""
STATE_ORDER = ("failed", "cancelled", "running", "pending")
"""A job has the first of these states that one of its nodes has."""
STATE_COMMANDS = (
    ("squeue", "--noheader", "--states=all", "--format=%A|%j|%T|%N|%r"),
    (
        *("sacct", "--noheader", "--parsable2", "--allocations"),
        "--format=JobID,JobName,State,NodeList,Reason",
    ),
)
"""Both print job number, name, state, nodes and reason of each component of a job."""
NAME_END = "."
"""Between the name that a user gave to a job and torchx's name of a node, such as train-0."""


class Component(NamedTuple):
    """A node of a job."""

    name: str
    state: str
    host: str
    reason: str


def components_of(app_id: str) -> list[Component]:
    """Returns the nodes of a job; none if neither squeue nor sacct knows it."""
    for command in STATE_COMMANDS:
        rows = slurm_answer([*command, f"--jobs={app_id}"])
        if rows:
            return [
                Component(name.rpartition(NAME_END)[2], state_of(state), host, reason)
                for _, name, state, host, reason in rows
            ]
    return []


def slurm_answer(command: list[str]) -> list[list[str]] | None:
    """Returns the fields of each line that a command prints; None if it fails or is missing."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    return [line.split("|") for line in done.stdout.split("\n")[:-1]]


def state_of_job(states: Collection[str]) -> str:
    """Returns the state of a job from those of its nodes."""
    return next((each for each in STATE_ORDER if each in states), next(iter(states)))


def state_of(text: str) -> str:
    """Returns the state that squeue or sacct prints, such as `CANCELLED by 0`."""
    return SLURM_STATES.get(text.split(" ")[0].rstrip("+"), "unknown")
