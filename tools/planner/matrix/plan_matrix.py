"""Plans for every combination of values: kinds and numbers of GPUs, batches, sizes of tables."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.console import Console
from rich.progress import track

from msrec.tools.planner.command.build_request import with_changes
from msrec.tools.planner.command.cluster_size import fewest_gpus
from msrec.tools.planner.command.running_costs import RunningCosts, pareto_front, running_costs
from msrec.tools.planner.hardware import Catalogue
from msrec.tools.planner.plan import Plan
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.search.make_plan import make_plan

MACHINES = ("gpu", "gpus", "nodes", "per_node")
"""Axes of the machine, in the order in which they are applied: a node's size comes from its GPU.
Only plans that are equal in all other axes are compared, because they train the same model with the
same batch on a rank."""
SIZES = MACHINES[1:]
MAX_PLANS = 2000
Values = tuple[str, ...]


@dataclass(frozen=True)
class PlanMatrix:
    """Plans of all combinations.

    Attributes:
        axes: name -> values, as text.
        plans: a value of each axis -> plan, also one that does not fit.
        refused: a value of each axis -> why there is no plan.
    """

    axes: Mapping[str, Sequence[str]]
    plans: Mapping[Values, Plan]
    refused: Mapping[Values, str]

    @property
    def combinations(self) -> list[Values]:
        """Values of each axis, the last axis changing fastest."""
        return list(itertools.product(*self.axes.values()))

    @cached_property
    def costs(self) -> dict[Values, RunningCosts]:
        """Costs of each plan that fits."""
        return {key: running_costs(plan) for key, plan in self.plans.items() if plan.fits}

    @cached_property
    def front(self) -> set[Values]:
        """Plans that no other one beats in throughput and money, among those of the same model."""
        same: dict[Values, dict[Values, RunningCosts]] = {}
        for key, costs in self.costs.items():
            same.setdefault(self.model_of(key), {})[key] = costs
        return set[Values]().union(*map(pareto_front, same.values()))

    @property
    def model_axes(self) -> list[str]:
        """Axes that are not of the machine."""
        return [name for name in self.axes if name not in MACHINES]

    def model_of(self, key: Values) -> Values:
        """Returns the values of the model's axes."""
        return tuple(v for name, v in zip(self.axes, key, strict=True) if name not in MACHINES)


def parse_axes(texts: Sequence[str]) -> dict[str, list[str]]:
    """Returns name -> values from texts such as `gpu=h100,h200`, those of the machine first.

    Raises:
        ValueError: a text has no value, or repeats a name or a value, or there are too many
            combinations.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        found = [value.strip() for value in values.split(",")]
        if not name or "" in found or name in axes or len(set(found)) < len(found):
            raise ValueError(
                "--vary must have a name and different values, and each name once, such as "
                f"gpu=h100,h200; got {text!r}."
            )
        axes[name] = found
    number = math.prod(map(len, axes.values()))
    if number > MAX_PLANS:
        raise ValueError(f"--vary must make at most {MAX_PLANS:,} plans; it would make {number:,}.")
    order = [*(name for name in MACHINES if name in axes), *axes]
    return {name: axes[name] for name in order}


def plan_matrix(
    request: PlanRequest,
    axes: Mapping[str, Sequence[str]],
    catalogue: Catalogue,
    console: Console,
    min_gpus: bool = False,
) -> PlanMatrix:
    """Makes a plan for every combination of values.

    Args:
        request: as asked, to which the values are applied.
        axes: name of a change -> values, see `with_changes`.
        catalogue: accelerators to look up.
        console: shows how far it is.
        min_gpus: whether each plan has the fewest GPUs with room.

    Raises:
        ValueError: an axis is unknown, a value is invalid in all combinations, no combination has
            a plan, or the number of GPUs is both varied and searched for.
    """
    sizes = [name for name in SIZES if name in axes]
    if min_gpus and sizes:
        raise ValueError(
            f"--min-gpus searches for the number of GPUs; leave out --vary {sizes[0]}."
        )
    requests: dict[Values, PlanRequest] = {}
    plans: dict[Values, Plan] = {}
    refused: dict[Values, str] = {}
    for key in itertools.product(*axes.values()):
        changes = [f"{name}={value}" for name, value in zip(axes, key, strict=True)]
        try:
            requests[key] = with_changes(request, ",".join(changes), catalogue)
        except ValueError as error:
            refused[key] = str(error)
    _refuse_values_without_request(axes, refused)
    catalogue.refuse_unused_prices(each.hardware_name for each in requests.values())
    for key in track(list(requests), "plans", console=console, transient=True):
        try:
            plans[key] = fewest_gpus(requests[key]) if min_gpus else make_plan(requests[key])
        except ValueError as error:
            refused[key] = str(error)
    if not plans:
        raise ValueError(next(iter(refused.values())))
    return PlanMatrix(axes, plans, refused)


def _refuse_values_without_request(
    axes: Mapping[str, Sequence[str]], refused: Mapping[Values, str]
) -> None:
    """Refuses a value that is invalid in all combinations, such as a misspelled accelerator."""
    number = math.prod(map(len, axes.values()))
    for place, values in enumerate(axes.values()):
        for value in values:
            reasons = [reason for key, reason in refused.items() if key[place] == value]
            if len(reasons) == number // len(values):
                raise ValueError(reasons[0])
