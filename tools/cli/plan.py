"""`msrec plan`."""

import inspect
from typing import Any

import typer

from msrec.tools.planner.command.plan_options import PlanOptions


def plan(**options: Any) -> None:
    """Place embedding tables on GPUs and estimate memory and step time; needs no GPU.

    Exit status 1 if the tables do not fit, or if --verify finds an estimate that is off.
    """
    asked = PlanOptions(**options)
    if asked.vary:
        from msrec.tools.planner.matrix.matrix_command import matrix_command

        matrix_command(asked)
        return
    from msrec.tools.planner.command.plan_command import plan_command

    raise typer.Exit(0 if plan_command(asked) else 1)


# typer makes an option of every parameter. This takes the parameters from the dataclass's fields.
plan.__signature__ = inspect.signature(PlanOptions)  # type: ignore[attr-defined]
