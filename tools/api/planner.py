"""Planner of embedding tables for any TorchRec model, as a small library.

It needs no GPU, no process group and no memory for the tables::

    from msrec import planner

    tables = planner.read_tables("tables.yaml")          # or planner.tables_of(model)
    plan = planner.plan(tables, gpu="h100", nodes=2, batch=4096)
    print(plan.fits, plan.step_ms, plan.peak_memory)
    planner.save_plan(plan, "plan.json")

And in the trainer::

    model = DistributedModelParallel(model, plan=planner.load_plan("plan.json", model))

Importing this module imports neither torch nor TorchRec; `tables_of` and `load_plan` do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msrec.tools.planner.command.cluster_size import fewest_gpus
from msrec.tools.planner.command.running_costs import RunningCosts, running_costs
from msrec.tools.planner.estimator import EstimatorName
from msrec.tools.planner.export.constraints import constraints_source
from msrec.tools.planner.hardware import Hardware, load_hardware
from msrec.tools.planner.plan import Plan, RankLoad, TablePlan
from msrec.tools.planner.request import DenseMemory, GpuPool, PlanRequest
from msrec.tools.planner.search.make_plan import make_plan
from msrec.tools.planner.tables import Optimizer, Sharding, TableLoad, read_tables_file

if TYPE_CHECKING:
    from torch import nn
    from torchrec.distributed.types import ShardingPlan

__all__ = [
    "DenseMemory",
    "GpuPool",
    "Hardware",
    "Plan",
    "PlanRequest",
    "RankLoad",
    "RunningCosts",
    "TableLoad",
    "TablePlan",
    "constraints_source",
    "fewest_gpus",
    "load_hardware",
    "load_plan",
    "make_plan",
    "plan",
    "read_tables",
    "running_costs",
    "save_plan",
    "tables_of",
]


def plan(
    tables: Sequence[TableLoad],
    *,
    gpu: str | Hardware = "h100",
    nodes: int = 1,
    gpus_per_node: int | None = None,
    batch: int = 4096,
    optimizer: Optimizer = "rowwise_adagrad",
    shardings: Sequence[Sharding] | None = None,
    estimator: EstimatorName = "msrec",
) -> Plan:
    """Places tables on accelerators. For more options, make a `PlanRequest` and call `make_plan`.

    Args:
        tables: to place.
        gpu: name of an accelerator, or its figures.
        nodes: number of nodes.
        gpus_per_node: ranks of a node; None is those of `gpu`, 8 or 72 (NVL72).
        batch: rows of a step on one rank.
        optimizer: of the tables.
        shardings: sharding types allowed for tables that do not name their own; None allows all.
        estimator: whose estimates of time the search minimises, `msrec` or `torchrec`.

    Raises:
        ValueError: an argument is invalid, or a table has no allowed sharding option.

    Example:
        >>> made = plan([TableLoad(name="user", rows=1_000_000, dim=64)], gpus_per_node=2)
        >>> made.fits, [table.name for table in made.tables]
        (True, ['user'])
    """
    hardware = load_hardware(gpu) if isinstance(gpu, str) else gpu
    return make_plan(
        PlanRequest(
            tables=tables,
            batch=batch,
            hardware_name=gpu if isinstance(gpu, str) else gpu.about or "own",
            hardware=hardware,
            nodes=nodes,
            per_node=gpus_per_node or hardware.gpus_per_node,
            optimizer=optimizer,
            shardings=shardings,
            estimator=estimator,
        )
    )


def read_tables(path: Path | str) -> list[TableLoad]:
    """Reads a list of tables from YAML or CSV.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or a table is invalid.
    """
    return read_tables_file(Path(path))


def tables_of(model: "nn.Module", pooling: Mapping[str, float] | None = None) -> list[TableLoad]:
    """Returns the tables of a TorchRec model, with the paths of its collections.

    Args:
        model: before sharding. On the meta device it takes no memory.
        pooling: table -> mean number of ids per row and feature; 1 for the others.

    Raises:
        ValueError: the model has no table, or one that cannot be planned.
    """
    from msrec.tools.planner.sources.module_tables import tables_of as tables_of_module

    return tables_of_module(model, pooling)


def save_plan(plan: Plan, path: Path | str) -> None:
    """Writes a plan for `load_plan`, `msrec plan --from` and `msrec train plan=FILE`.

    Raises:
        FileExistsError: the file exists.
    """
    with Path(path).open("x") as file:
        file.write(plan.model_dump_json(indent=1) + "\n")


def load_plan(path: Path | str, model: "nn.Module") -> "ShardingPlan":
    """Reads a plan as TorchRec's ShardingPlan and checks that it is of this model.

    Args:
        path: file that `save_plan` or `msrec plan` wrote.
        model: the module that is given to DistributedModelParallel, before sharding.

    Raises:
        FileNotFoundError, ValueError: see `msrec.tools.planner.export.torchrec_plan.load_plan`.
    """
    from msrec.tools.planner.export.torchrec_plan import load_plan as load_torchrec_plan

    return load_torchrec_plan(path, model)
