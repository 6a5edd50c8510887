"""Tasks of a stage, and what an engine does with them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol


class Task(NamedTuple):
    """A part of a stage, and its number."""

    number: int
    part: Any


Call = Callable[[Task], None]


class Engine(Protocol):
    """Calls a function with many tasks, on several workers."""

    def run(self, function: Call, tasks: Sequence[Task]) -> Iterator[int]:
        """Calls the function with each task; yields its number when the call has ended."""
        ...

    def close(self) -> None:
        """Ends the workers."""
        ...
