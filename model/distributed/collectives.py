"""Agreement of all ranks on a result or an error of rank 0."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def from_rank_0(compute: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Calls `compute` on rank 0 and returns its result on every rank; all ranks must call this.

    Raises:
        OSError, ValueError: raised by `compute`, on every rank. If only rank 0 raised it, the other
            ranks would wait in their next collective until the timeout.
    """
    answer: list[tuple[T | None, OSError | ValueError | None]] = [(None, None)]
    if dist.get_rank(group) == 0:
        try:
            answer = [(compute(), None)]
        except (OSError, ValueError) as error:
            answer = [(None, error)]
    dist.broadcast_object_list(answer, src=0, group=group)
    value, failure = answer[0]
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]
