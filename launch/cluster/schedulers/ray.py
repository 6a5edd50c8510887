"""torchx's scheduler for Ray, which without the library cannot even be imported."""

from importlib.util import find_spec
from typing import Any


def create_scheduler(session_name: str, **kwargs: Any) -> Any:
    """Entry point for torchx.

    Raises:
        ModuleNotFoundError: Ray is not installed; torchx prints the sentence.
    """
    if find_spec("ray") is None:
        raise ModuleNotFoundError(
            "the scheduler ray needs the library ray, which is not installed: pip install "
            '"msrec[ray]"'
        )
    from torchx.schedulers import ray_scheduler

    return ray_scheduler.create_scheduler(session_name, **kwargs)
