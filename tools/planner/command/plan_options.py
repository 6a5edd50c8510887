"""Options of `msrec plan`, declared once with their help texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer


@dataclass(frozen=True)
class PlanOptions:
    """Arguments and options of `msrec plan`; the command's signature is made from them."""

    source: Annotated[
        Path | None, typer.Argument(help="a run's YAML file, or a list of tables: YAML or CSV")
    ] = None
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key.sub=value, such as [b]backbone.name=mmoe meta.user=true[/]"),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            help="plan the tables of a TorchRec model: package.module:factory, a function without "
            "arguments, called on the meta device"
        ),
    ] = None
    tables: Annotated[
        Path | None,
        typer.Option(
            help="list of tables for a config whose data set does not exist yet; default: "
            "NAME_tables.yaml beside NAME.yaml"
        ),
    ] = None
    llm_dim: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="components of the LLM's vectors, for a config whose knowledge store does not "
            "exist yet; default: those of the installed llm.model",
        ),
    ] = None
    nodes: Annotated[int, typer.Option(min=1, help="number of nodes")] = 1
    gpus_per_node: Annotated[
        int | None,
        typer.Option(min=1, help="ranks per node; default: those of --gpu, 8 or 72 (NVL72)"),
    ] = None
    gpu: Annotated[
        str | None,
        typer.Option(
            help="accelerator: a100-40, a100-80, h100, h200, b200, gb200, gb300, mi300x, l40s, "
            "cpu, or one from --hardware; default: h100"
        ),
    ] = None
    hardware: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of accelerators, in the format of tools/planner/hardware.yaml"
        ),
    ] = None
    pool: Annotated[
        list[str] | None,
        typer.Option(
            help="GPUs of a job with different ones, NAME:RANKS in whole nodes, such as h100:8; "
            "repeat it for each kind, instead of --gpu and --nodes"
        ),
    ] = None
    group_ranks: Annotated[
        str | None,
        typer.Option(
            help="consecutive ranks that share one copy of the tables, as embeddings.group_ranks, "
            "or auto for the number with the shortest step; default: the config's, else all"
        ),
    ] = None
    sync_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="steps between two averages of the copies, as embeddings.sync_every; default: "
            "the config's, else 1",
        ),
    ] = None
    price: Annotated[
        list[str] | None,
        typer.Option(
            help="dollars per GPU and hour, such as h100=2.5, instead of the list price in "
            "tools/planner/hardware.yaml; may be repeated"
        ),
    ] = None
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="rows of a step on one rank; default: the config's, else 4096"),
    ] = None
    optimizer: Annotated[
        Literal["rowwise_adagrad", "adam"] | None,
        typer.Option(help="optimizer of the tables; default: the config's, else rowwise_adagrad"),
    ] = None
    estimator: Annotated[
        Literal["msrec", "torchrec"],
        typer.Option(
            help="estimates of time: msrec's, or those of TorchRec's planner with msrec's beside"
        ),
    ] = "msrec"
    sharding: Annotated[
        list[str] | None,
        typer.Option(help="sharding type to allow; may be repeated; default: all"),
    ] = None
    cached: Annotated[
        list[str] | None,
        typer.Option(
            help="allow tables in host memory, with this share of their rows cached on the GPU, or "
            "auto for the share with the shortest step; may be repeated"
        ),
    ] = None
    id_counts: Annotated[
        Path | None,
        typer.Option(help="popularity of ids, from msrec show DATA --id-counts FILE"),
    ] = None
    budget_gib: Annotated[
        float | None, typer.Option(help="GiB of each GPU to use at most; default: all")
    ] = None
    dense_parameters: Annotated[
        int, typer.Option(min=0, help="dense parameters, trained with Adam, for a list of tables")
    ] = 0
    min_gpus: Annotated[
        bool, typer.Option("--min-gpus", help="find the fewest GPUs with room for the tables")
    ] = False
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="plan with a change: dim=128, item_id.precision=fp16, gpu=h200, gpus=16; "
            "may be repeated",
        ),
    ] = None
    compare: Annotated[
        bool, typer.Option("--compare", help="compare the plan with one plan for each --set")
    ] = False
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="plan for every combination of values and compare step, throughput and money: "
            "gpu=h100,h200, gpus=8,16,32, batch=2048,4096, dim=64,128; may be repeated; "
            "--page writes a page with sliders"
        ),
    ] = None
    verify: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="train a few steps on this many CPU ranks here, and compare estimated and "
            "measured memory",
        ),
    ] = None
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from", help="run folder or plan.json: show that plan, with --measured its times"
        ),
    ] = None
    measured: Annotated[
        Path | None,
        typer.Option(
            help="compare a plan with measured times: a run folder (trainer.trace=20), or with "
            "--from PLAN a trace of torch.profiler, a folder with one of each rank, or a CSV file "
            "with table, rank, ms"
        ),
    ] = None
    recalibrate: Annotated[
        Path | None,
        typer.Option(help="with --measured: file for the measured bandwidths, for --hardware"),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(help="plan to write, for msrec train plan=FILE; default: plan.json"),
    ] = None
    constraints: Annotated[
        Path | None,
        typer.Option(help="Python file to write, with ParameterConstraints for TorchRec's planner"),
    ] = None
    page: Annotated[
        Path | None, typer.Option(help="HTML page to write, with charts; needs no network")
    ] = None
