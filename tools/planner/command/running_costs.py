"""Throughput, money and energy of training by a plan, and the plans that no other one beats."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from msrec.launch.reporting.byte_sizes import FLOAT_BYTES
from msrec.tools.planner.hardware import Hardware
from msrec.tools.planner.plan import Plan

FLOPS_PER_PARAMETER = 6
"""Floating-point operations of a row with a dense parameter: 2 forward, 4 backward."""
BILLION = 1e9
HOUR_S = 3600
Key = TypeVar("Key")


class RunningCosts(NamedTuple):
    """Estimates for a whole job.

    Attributes:
        dense_ms: the dense part of a step, its products at peak speed; 0 if its size is not known.
        step_ms: tables and dense part of a step, as if nothing overlapped.
        rows_per_s: rows of all ranks.
        usd_per_hour: dollars of all GPUs; None without a price.
        usd_per_billion: dollars for 1e9 rows; None without a price.
        kwh_per_billion: energy of the accelerators at their maximum for 1e9 rows; None if that is
            not known.
    """

    dense_ms: float
    step_ms: float
    rows_per_s: float
    usd_per_hour: float | None
    usd_per_billion: float | None
    kwh_per_billion: float | None


class Used(NamedTuple):
    """Equal accelerators of a job."""

    name: str
    hardware: Hardware
    number: int


def accelerators_of(plan: Plan) -> list[Used]:
    """Returns the accelerators that a job by this plan uses."""
    if plan.pools:
        return [Used(pool.name, pool.specification, pool.ranks) for pool in plan.pools]
    return [Used(plan.hardware, plan.specification, plan.world_size * plan.copies)]


def running_costs(plan: Plan) -> RunningCosts:
    """Returns what training by a plan costs."""
    used = accelerators_of(plan)
    parameters = plan.ranks[0].memory.get("dense parameters", 0) / FLOAT_BYTES
    flops = FLOPS_PER_PARAMETER * parameters * plan.batch
    dense_ms = flops / (min(each.hardware.dense_tflops for each in used) * 1e9)
    step_ms = plan.step_ms + dense_ms
    rows_per_s = plan.batch * sum(each.number for each in used) / step_ms * 1e3
    hours = BILLION / rows_per_s / HOUR_S
    prices = [each.hardware.price for each in used]
    usd = _total([None if price is None else price.usd_per_hour for price in prices], used)
    watts = _total([each.hardware.power_w for each in used], used)
    return RunningCosts(
        dense_ms=dense_ms,
        step_ms=step_ms,
        rows_per_s=rows_per_s,
        usd_per_hour=usd,
        usd_per_billion=None if usd is None else usd * hours,
        kwh_per_billion=None if watts is None else watts / 1e3 * hours,
    )


def _total(each: Sequence[float | None], used: Sequence[Used]) -> float | None:
    """Returns the sum over all accelerators of what one of each kind takes; None if unknown."""
    known = [value for value in each if value is not None]
    if len(known) < len(used):
        return None
    return sum(value * of.number for value, of in zip(known, used, strict=True))


def pareto_front(costs: Mapping[Key, RunningCosts]) -> set[Key]:
    """Returns the plans for which no other is at least as fast and as cheap per row, and not equal.

    Plans without a price are not compared.
    """
    priced = {key: each for key, each in costs.items() if each.usd_per_billion is not None}
    speed = np.array([each.rows_per_s for each in priced.values()])
    money = np.array([each.usd_per_billion for each in priced.values()], dtype=float)

    def is_beaten(rows_per_s: float, usd: float) -> bool:
        as_good = (speed >= rows_per_s) & (money <= usd)
        return bool((as_good & ((speed > rows_per_s) | (money < usd))).any())

    return {
        key
        for key, rows_per_s, usd in zip(priced, speed, money, strict=True)
        if not is_beaten(rows_per_s, usd)
    }


def amount(value: float | None) -> str:
    """Returns dollars or kilowatt-hours for people."""
    return "?" if value is None else f"{value:,.2f}"
