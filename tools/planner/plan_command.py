"""`msrec plan`: tables and hardware in, a plan for people and for training out."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from msrec.data.io.atomic_files import write_text
from msrec.data.io.validation import first_error, read_yaml
from msrec.launch.config import RunConfig, load_config, with_overrides
from msrec.launch.console import wide_console
from msrec.launch.distributed import quiet_libraries
from msrec.launch.reporting.plan_table import FLOAT_BYTES, size
from msrec.model.distributed.sharding import TableOptimizer
from msrec.tools.planner.dense_memory import DenseLoad, learned_lines
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.plan import GIB, Plan, Request, make_plan
from msrec.tools.planner.plan_text import tell, verdict
from msrec.tools.planner.sharding_options import SPAN
from msrec.tools.planner.tables import Sharding, TableLoad, read_tables_file

MOST_NODES = 4096
LIST_BATCH = 4096
"""Rows of a step on one rank beside a list of tables, which says nothing of it."""
OF_TABLES = ("rows", "dim", "pooling", "precision", "sharding", "kernel")
CHANGES = (*OF_TABLES, "batch", "gpu", "nodes", "per_node", "optimizer")


def plan_tables(
    request: Request,
    out: Path | None,
    page: Path | None = None,
    *,
    min_gpus: bool = False,
    compare: Sequence[str] = (),
    hardware_file: Path | None = None,
    console: Console | None = None,
) -> Plan:
    """Plan, print and write.

    Args:
        request: what to plan.
        out: JSON file to write; None writes none. A plan that does not fit is not written.
        page: HTML file to write, with pictures; None writes none.
        min_gpus: first find the fewest nodes (of `request.per_node`) that have room.
        compare: changes, such as dim=128 or gpu=h200, whose plans stand beside this one.
        hardware_file: where a compared `gpu` is looked up.
        console: where to print.

    Raises:
        ValueError: a change is not one, or no number of nodes has room.
    """
    console = console or wide_console()
    quiet_libraries()
    plan = fewest_nodes(request) if min_gpus else make_plan(request)
    request = dataclasses.replace(request, nodes=plan.nodes)
    others = [(change, changed(request, change, hardware_file)) for change in compare]
    tell(plan, console)
    if min_gpus:
        console.print(
            f"The fewest that have room: {plan.nodes} node{'s' * (plan.nodes > 1)} of "
            f"{plan.per_node}.",
            highlight=False,
        )
    compared = {name: make_plan(other) for name, other in others}
    if compared:
        console.print(comparison({"as asked": plan} | compared))
    if out is not None and plan.fits:
        write_text(out, plan.model_dump_json(indent=1) + "\n")
        console.print(f"wrote {out}, plan {plan.hash[:12]}", highlight=False, soft_wrap=True)
    if page is not None:
        from msrec.tools.planner.page import plan_page  # half a second, and seldom wanted

        write_text(page, plan_page(plan, compared))
        console.print(f"wrote {page}", highlight=False, soft_wrap=True)
    return plan


def verify_plan(request: Request, ranks: int, console: Console | None = None) -> bool:
    """Plan the same for CPU ranks of this machine, run steps, print what they took.

    Args:
        request: of a run's config.
        ranks: how many.
        console: where to print.

    Returns:
        Whether the estimates held.

    Raises:
        ValueError: there is no config, or no room.
    """
    from msrec.tools.planner.verify import verify  # which needs a trainer

    if request.config is None:
        raise ValueError(
            "--verify needs a run's config, whose steps it runs; got a list of tables."
        )
    here = dataclasses.replace(
        request,
        hardware=("cpu", load_hardware("cpu")),
        nodes=1,
        per_node=ranks,
        load_factors=(),
        shardings=None,
    )
    trainer = request.config.trainer.model_copy(update={"global_batch": here.share * ranks})
    config = request.config.model_copy(update={"trainer": trainer})
    plan = make_plan(dataclasses.replace(here, config=config))
    return verify(plan, config, console or wide_console())


def fewest_nodes(request: Request) -> Plan:
    """The plan on the fewest nodes that have room: doubling, then halving.

    Raises:
        ValueError: `MOST_NODES` have no room; says what is too much there.
    """

    def on(nodes: int) -> Plan:
        return make_plan(dataclasses.replace(request, nodes=nodes))

    nodes, found = 1, on(1)
    while not found.fits:
        if nodes >= MOST_NODES:
            raise ValueError(
                f"some number of nodes up to {MOST_NODES} must have room for the tables; none has. "
                f"{next(verdict(found))}"
            )
        nodes *= 2
        found = on(nodes)
    low = nodes // 2
    while nodes - low > 1:
        middle = (low + nodes) // 2
        tried = on(middle)
        if tried.fits:
            nodes, found = middle, tried
        else:
            low = middle
    return found


def comparison(plans: Mapping[str, Plan]) -> Table:
    """Plans side by side."""
    table = Table(title="what if (estimates)")
    table.add_column("")
    for name in plans:
        table.add_column(name, justify="right", overflow="fold")
    for head, cells in _lines(plans.values()):
        table.add_row(head, *cells)
    return table


def _lines(plans: Any) -> Iterator[tuple[str, list[str]]]:
    plans = list(plans)
    yield "ranks", [f"{p.nodes} x {p.per_node} {p.hardware}" for p in plans]
    yield "fits", ["yes" if p.fits else "no" for p in plans]
    yield "tables, all ranks", [size(sum(t.weights + t.host for t in p.tables)) for p in plans]
    yield "fullest rank", [size(p.ranks[p.fullest].total_memory) for p in plans]
    yield "may be used", [size(p.capacity) for p in plans]
    yield "step, ms", [f"{p.step_ms:.2f}" for p in plans]
    yield "imbalance", [f"{p.imbalance:.2f}" for p in plans]
    for sharding in get_args(Sharding):
        counts = [sum(t.sharding == sharding for t in p.tables) for p in plans]
        if any(counts):
            yield sharding, [str(count) for count in counts]


def changed(request: Request, change: str, hardware_file: Path | None) -> Request:
    """A request with one thing, or several parted by commas, changed.

    `dim=128` changes all tables, `item_id.dim=128` one; `embeddings.dim=128` a run's config.
    """
    for part in change.split(","):
        key, equals, text = part.partition("=")
        table, _, name = key.rpartition(".")
        is_of_config = (
            request.config is not None and key.partition(".")[0] in RunConfig.model_fields
        )
        if not equals or (name not in CHANGES and not is_of_config):
            known = ", ".join(f"{c}=..." for c in CHANGES)
            more = (
                "" if request.config is None else ", or a value of the config, embeddings.dim=..."
            )
            raise ValueError(f"a change must be one of {known}{more}; got {part!r}.")
        value = yaml.safe_load(text)
        if is_of_config:
            assert request.config is not None
            said = of_config(with_overrides(request.config, [part]), request.share)
            request = dataclasses.replace(request, **said)
        elif name == "dim" and request.config is not None:
            raise ValueError(f"{part}: the tables of a config have one width, embeddings.dim=...")
        elif name == "gpu":
            given = str(value)
            request = dataclasses.replace(
                request, hardware=(given, load_hardware(given, hardware_file))
            )
        elif name == "optimizer":
            if value not in get_args(TableOptimizer):
                known = ", ".join(get_args(TableOptimizer))
                raise ValueError(f"{part}: the optimizer must be one of {known}.")
            request = dataclasses.replace(request, optimizer=value)
        elif name in ("batch", "nodes", "per_node"):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{part}: {name} must be a whole number of 1 or more.")
            counts: dict[str, Any] = {name: value}
            request = dataclasses.replace(request, **counts)
        else:
            if table and table not in {each.name for each in request.tables}:
                raise ValueError(f"a change must name one of the tables; got {table!r}.")
            try:
                tables = [
                    TableLoad.model_validate(each.model_dump() | {name: value})
                    if table in ("", each.name)
                    else each
                    for each in request.tables
                ]
            except ValidationError as error:
                raise ValueError(f"{part}: {first_error(error)}.") from None
            request = dataclasses.replace(request, tables=tables)
    return request


def request_of(
    source: Path,
    overrides: Sequence[str],
    *,
    gpu: str,
    hardware_file: Path | None,
    nodes: int,
    per_node: int,
    batch: int | None,
    optimizer: str | None,
    shardings: Sequence[str],
    load_factors: Sequence[float],
    budget_gib: float | None,
    dense_parameters: int,
) -> Request:
    """What the command line asks.

    Args:
        source: a run's config, or a list of tables (CSV, or YAML with `tables:` or a list).
        overrides: of the config.
        gpu: the accelerator.
        hardware_file: where to look it up.
        nodes: how many.
        per_node: ranks of each.
        batch: rows of a step on one rank; None is the config's share, or 4096.
        optimizer: of the tables; None is the config's, or rowwise_adagrad.
        shardings: allowed ways; empty is what msrec trains with, or all for a list of tables.
        load_factors: of the cache of tables in host memory.
        budget_gib: the most of an accelerator.
        dense_parameters: beside a list of tables.

    Raises:
        FileNotFoundError, ValueError: of the files, or an argument is not known.
    """
    for sharding in shardings:
        if sharding not in SPAN:
            raise ValueError(f"a sharding must be one of {', '.join(SPAN)}; got {sharding!r}.")
    for factor in load_factors:
        if not 0 < factor < 1:
            raise ValueError(f"a cached share must lie between 0 and 1; got {factor}.")
    asked: dict[str, Any] = {
        "hardware": (gpu, load_hardware(gpu, hardware_file)),
        "nodes": nodes,
        "per_node": per_node,
        "load_factors": tuple(load_factors),
        "budget": None if budget_gib is None else int(budget_gib * GIB),
    }
    if _is_config(source):
        config = load_config(source, overrides)
        found = of_config(config, max(config.trainer.global_batch // (nodes * per_node), 1))
    elif overrides:
        raise ValueError(f"{source} is a list of tables, which takes no overrides; use --set.")
    else:
        found = _of_list(source, dense_parameters) | {"batch": LIST_BATCH}
    if batch is not None:
        asked["batch"] = batch
    if shardings:
        asked["shardings"] = tuple(shardings)
    if optimizer is not None:
        asked["optimizer"] = optimizer
    return Request(**(found | asked))


def of_config(config: RunConfig, rows: int) -> dict[str, Any]:
    """What a run says of a `Request`.

    Args:
        config: of the run.
        rows: of a step on one rank, about.
    """
    from msrec.tools.planner.config_model import tables_and_dense  # a list of tables needs no model

    tables, dense = tables_and_dense(config, rows)
    return {
        "tables": tables,
        "batch": None,
        "global_batch": config.trainer.global_batch,
        "optimizer": config.embeddings.optimizer,
        "dense": dense,
        "config": config,
    }


def _of_list(file: Path, parameters: int) -> dict[str, Any]:
    """What a list of tables says of a `Request`, and dense parameters beside it."""
    dense = {"dense parameters": parameters * FLOAT_BYTES, **learned_lines(parameters)}
    return {
        "tables": read_tables_file(file),
        "dense": DenseLoad(dense if parameters else {}),
    }


def _is_config(source: Path) -> bool:
    if source.suffix == ".csv" or not source.is_file():
        return False
    tree = read_yaml(source)
    return isinstance(tree, dict) and "tables" not in tree
