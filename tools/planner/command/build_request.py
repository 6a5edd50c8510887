"""Builds the request for a plan from command-line options, a run's config and changes (--set)."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from msrec.data.io.names import module_name
from msrec.data.io.validation import first_error
from msrec.data.io.yaml_files import parse_yaml, read_yaml
from msrec.data.schema import SCHEMA_FILE
from msrec.launch.reporting.byte_sizes import FLOAT_BYTES
from msrec.tools.planner.command.plan_options import PlanOptions
from msrec.tools.planner.estimator import CACHED_SHARES
from msrec.tools.planner.hardware import STOCK, Catalogue, parse_prices
from msrec.tools.planner.request import DenseMemory, GpuPool, PlanRequest, adam_memory
from msrec.tools.planner.sharding_options import SPAN
from msrec.tools.planner.sources.id_counts import read_id_counts
from msrec.tools.planner.tables import Optimizer, TableLoad, read_tables_file

if TYPE_CHECKING:
    from msrec.launch.config.run_config import RunConfig

AUTO = "auto"
"""Value of an option that a search chooses."""
LIST_BATCH = 4096
"""Rows of a step on one rank, for a list of tables without --batch."""
TABLE_CHANGES = ("rows", "dim", "pooling", "precision", "sharding", "kernel", "zipf", "cache")
CLUSTER_CHANGES = ("gpu", "gpus", "nodes", "per_node")
CHANGES = (*TABLE_CHANGES, "batch", *CLUSTER_CHANGES, "optimizer", "group_ranks", "sync_every")


def catalogue_of(options: PlanOptions) -> Catalogue:
    """Returns the accelerators of the command line.

    Raises:
        ValueError: a price is invalid.
    """
    return Catalogue(options.hardware, parse_prices(options.price or []), options.gpus_per_node)


def request_from_options(options: PlanOptions) -> PlanRequest:
    """Returns the request that the command line asks for, without its changes (--set).

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file or an option is invalid.
    """
    for sharding in options.sharding or []:
        if sharding not in SPAN:
            raise ValueError(f"a sharding must be one of {', '.join(SPAN)}; got {sharding!r}.")
    budget = options.budget_gib
    if budget is not None and not 0 < budget < math.inf:
        raise ValueError(f"--budget-gib must be a number above 0; got {budget}.")
    gpu = options.gpu or "h100"
    hardware = catalogue_of(options).load(gpu)
    fields: dict[str, Any] = {
        "hardware_name": gpu,
        "hardware": hardware,
        "nodes": options.nodes,
        "per_node": hardware.gpus_per_node,
        "shardings": options.sharding or None,
        "load_factors": _cached_shares(options.cached or []),
        "budget": None if budget is None else int(budget * 2**30),
    }
    fields["estimator"] = options.estimator
    if options.pool:
        fields |= _pool_fields(options)
    fields |= _source_fields(options, fields["nodes"] * fields["per_node"])
    if options.id_counts is not None:
        fields |= _with_id_counts(fields, options.id_counts)
    if options.batch is not None:
        fields["batch"] = options.batch
    if options.optimizer is not None:
        fields["optimizer"] = options.optimizer
    return PlanRequest(**fields)


def _cached_shares(texts: Sequence[str]) -> Sequence[float]:
    """Returns the shares of rows to cache; `auto` stands for all from which a search chooses."""
    shares: list[float] = []
    for text in texts:
        try:
            of_text = CACHED_SHARES if text == AUTO else (float(text),)
        except ValueError:
            of_text = (0.0,)
        if not all(0 < share < 1 for share in of_text):
            raise ValueError(f"a cached share must be auto, or between 0 and 1; got {text}.")
        shares += of_text
    return shares


def _pool_fields(options: PlanOptions) -> dict[str, Any]:
    """Returns the fields for a job with different GPUs."""
    if options.gpu is not None or options.nodes != 1 or options.min_gpus:
        raise ValueError("--pool names all GPUs of the job; leave out --gpu, --nodes, --min-gpus.")
    catalogue, pools = catalogue_of(options), []
    for text in options.pool or []:
        name, _, ranks = text.partition(":")
        if not ranks.isdecimal():
            raise ValueError(f"--pool must be NAME:RANKS, such as h100:8; got {text!r}.")
        pools.append(GpuPool(name, catalogue.load(name), int(ranks)))
    sizes = {pool.hardware.gpus_per_node for pool in pools}
    if len(sizes) > 1:
        raise ValueError(
            f"all pools must have nodes of the same size; these have {min(sizes)} and {max(sizes)} "
            "GPUs. Give --gpus-per-node."
        )
    first, (per_node,) = pools[0], sizes
    return {
        "pools": pools,
        "hardware_name": first.name,
        "hardware": first.hardware,
        "nodes": max(sum(pool.ranks for pool in pools) // per_node, 1),
        "per_node": per_node,
    }


def _with_id_counts(fields: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Returns the tables with their popularity of ids from a file, and a note about it."""
    counts = read_id_counts(file)
    tables: Sequence[TableLoad] = fields["tables"]
    counted = [table.name for table in tables if table.name in counts]
    if not counted:
        raise ValueError(
            f"{file} must have counts of one of the tables; it has {', '.join(counts)}, and the "
            f"tables are {', '.join(table.name for table in tables)}."
        )
    updates = {name: {"id_counts": counts[name], "zipf": None} for name in counted}
    try:
        tables = [
            TableLoad.model_validate(table.model_dump() | updates.get(table.name, {}))
            for table in tables
        ]
    except ValidationError as error:
        raise ValueError(f"{file} must be of these tables; {first_error(error)}.") from None
    note = f"The popularity of ids is known for {len(counted)} of {len(tables)} tables."
    return {"tables": tables, "notes": [*fields.get("notes", ()), note]}


def _source_fields(options: PlanOptions, ranks: int) -> dict[str, Any]:
    """Returns the fields that come from the run's config, the list of tables, or the model."""
    source, overrides = options.source, options.overrides or []
    if options.model is not None:
        if source is not None:
            raise ValueError(f"a plan must have --model or a file, not both; got {source} too.")
        return _model_fields(options)
    if source is None:
        raise ValueError(
            "msrec plan needs a run's config, a list of tables, --model package.module:factory, or "
            "--from RUN."
        )
    if _is_config(source):
        from msrec.launch.config.run_config import load_config

        groups = {"group_ranks": _group_ranks(options), "sync_every": options.sync_every}
        given = [f"embeddings.{k}={v}" for k, v in groups.items() if v is not None]
        config = load_config(source, [*overrides, *given])
        rows = options.batch or max(config.trainer.global_batch // ranks, 1)
        if not (config.dataset / SCHEMA_FILE).is_file():
            return _fields_without_data(options, config, rows)
        if options.tables or options.llm_dim:
            raise ValueError(
                f"--tables and --llm-dim are for a config without data; {config.dataset} exists."
            )
        return config_fields(config, rows)
    if overrides:
        raise ValueError(f"{source} is a list of tables, which takes no overrides; use --set.")
    return _list_fields(options, read_tables_file(source), options.dense_parameters)


def _group_ranks(options: PlanOptions) -> int | None:
    """Returns the number that --group-ranks gives; None if it is `auto` or absent."""
    if options.group_ranks in (None, AUTO):
        return None
    try:
        return int(options.group_ranks)
    except ValueError:
        raise ValueError(
            f"--group-ranks must be a number of ranks, or {AUTO}; got {options.group_ranks!r}."
        ) from None


def _list_fields(
    options: PlanOptions, tables: list[TableLoad], dense_parameters: int
) -> dict[str, Any]:
    """Returns the fields for tables with a dense part of which only the size is known."""
    dense = {"dense parameters": dense_parameters * FLOAT_BYTES} | adam_memory(dense_parameters)
    memory = DenseMemory(dense if dense_parameters else {})
    fields: dict[str, Any] = {"tables": tables, "batch": LIST_BATCH, "dense": memory}
    groups = {"group_ranks": _group_ranks(options), "sync_every": options.sync_every or 1}
    return fields | groups


def _model_fields(options: PlanOptions) -> dict[str, Any]:
    from msrec.tools.planner.sources.module_tables import (
        build_on_meta,
        dense_parameters_of,
        tables_of,
    )

    assert options.model is not None, "the caller has it"
    if options.dense_parameters:
        raise ValueError("--dense-parameters is for a list of tables; a model has its own.")
    if "" not in sys.path:
        sys.path.insert(0, "")  # so that a module of the working directory is found
    model = build_on_meta(options.model)
    return _list_fields(options, tables_of(model), dense_parameters_of(model))


def _fields_without_data(options: PlanOptions, config: "RunConfig", rows: int) -> dict[str, Any]:
    """Returns the fields for a config whose data set does not exist yet."""
    from msrec.tools.planner.sources.without_data import tables_and_dense_without_data

    assert options.source is not None, "the caller has it"
    beside = options.source.with_name(f"{options.source.stem}_tables.yaml")
    file = options.tables or beside
    if not file.is_file():
        raise FileNotFoundError(
            f"{config.dataset} must be a data set, or --tables a list of its tables; neither "
            f"exists, nor does {beside}."
        )
    tables, dense, notes = tables_and_dense_without_data(
        config, read_tables_file(file), rows, options.llm_dim
    )
    notes = [f"{config.dataset} does not exist: planned with the tables of {file}.", *notes]
    return _run_fields(config, tables, dense) | {"notes": notes}


def _is_config(source: Path) -> bool:
    if source.suffix == ".csv" or not source.is_file():
        return False
    tree = read_yaml(source)
    return isinstance(tree, dict) and "tables" not in tree


def config_fields(config: "RunConfig", rows: int) -> dict[str, Any]:
    """Returns the fields of a `PlanRequest` from a run's config, for `rows` on each rank."""
    # Imported here, because it needs the model, which a list of tables does not.
    from msrec.tools.planner.sources.run_memory import tables_and_dense

    return _run_fields(config, *tables_and_dense(config, rows))


def _run_fields(config: "RunConfig", tables: list[TableLoad], dense: DenseMemory) -> dict[str, Any]:
    return {
        "tables": tables,
        "batch": None,
        "optimizer": config.embeddings.optimizer,
        "comms": config.embeddings.comms,
        "dense": dense,
        "config": config,
        "group_ranks": config.embeddings.group_ranks,
        "sync_every": config.embeddings.sync_every,
    }


def with_changes(request: PlanRequest, changes: str, catalogue: Catalogue = STOCK) -> PlanRequest:
    """Returns a request with one change, or with several separated by commas.

    Args:
        request: to change.
        changes: `dim=128` changes all tables, `item_id.dim=128` one table, `gpu=h200` the
            accelerator (full nodes stay full), `gpus=16` the number of GPUs, in whole nodes, and
            `embeddings.dim=128` the config of a run.
        catalogue: accelerators to look up a `gpu` in.

    Raises:
        ValueError: a change has an unknown name or an invalid value.
    """
    for change in changes.split(","):
        request = dataclasses.replace(request, **_changed_fields(request, change, catalogue))
    return request


def _changed_fields(request: PlanRequest, change: str, catalogue: Catalogue) -> dict[str, Any]:
    key, equals, text = change.partition("=")
    table, _, name = key.rpartition(".")
    config = request.config
    if config is not None and key.partition(".")[0] not in type(config).model_fields:
        config = None
    if not equals or (name not in CHANGES and config is None):
        known = ", ".join(f"{c}=..." for c in CHANGES)
        if request.config is not None:
            known += ", or a value of the config, embeddings.dim=..."
        raise ValueError(f"a change must be one of {known}; got {change!r}.")
    if config is not None:
        from msrec.launch.config.run_config import with_overrides

        return config_fields(with_overrides(config, [change]), request.rows_per_rank)
    if request.pools and name in CLUSTER_CHANGES:
        raise ValueError(f"{change}: the GPUs of a job with --pool are those of the pools.")
    value = parse_yaml(text, f"{key}: the value")
    if name in TABLE_CHANGES:
        return {"tables": _changed_tables(request, change, table, name, value)}
    if name == "gpu":
        is_full = request.per_node == request.hardware.gpus_per_node
        hardware = catalogue.load(str(value))
        per_node = hardware.gpus_per_node if is_full else request.per_node
        return {"hardware_name": str(value), "hardware": hardware, "per_node": per_node}
    if name == "optimizer" and value not in get_args(Optimizer):
        known = ", ".join(get_args(Optimizer))
        raise ValueError(f"{change}: the optimizer must be one of {known}.")
    if name != "optimizer" and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{change}: {name} must be a whole number of 1 or more.")
    if name == "gpus":
        return _nodes_of(value, request)
    return {name: value}


def _nodes_of(gpus: int, request: PlanRequest) -> dict[str, int]:
    """Returns the nodes and GPUs per node of a number of GPUs.

    These are some GPUs of a host, some hosts of a node, or whole nodes.
    """
    of_node, name = request.hardware.gpus_per_node, request.hardware_name
    of_host = request.hardware.ranks_per_host(of_node)
    for what, whole in (("node", of_node), ("host", of_host)):
        if gpus > whole and gpus % whole:
            raise ValueError(
                f"gpus={gpus}: more GPUs than the {whole} of a {what} of {name} must be whole "
                f"{what}s, such as {gpus // whole * whole}."
            )
    per_node = min(gpus, of_node)
    return {"nodes": gpus // per_node, "per_node": per_node}


def _changed_tables(
    request: PlanRequest, change: str, table: str, name: str, value: Any
) -> Sequence[TableLoad]:
    """Returns the tables with a field changed: of the named table, or of all if it is ""."""
    if name == "dim" and request.config is not None:
        raise ValueError(
            f"{change}: all tables of a config have the same dim; use embeddings.dim=..."
        )
    table = module_name(table) if table else ""
    if table and table not in {each.name for each in request.tables}:
        raise ValueError(f"a change must name one of the tables; got {table!r}.")
    try:
        return [
            TableLoad.model_validate(each.model_dump() | {name: value})
            if table in ("", each.name)
            else each
            for each in request.tables
        ]
    except ValidationError as error:
        raise ValueError(f"{change}: {first_error(error)}.") from None
