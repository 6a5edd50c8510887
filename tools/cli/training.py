"""`msrec train`, `msrec encode` and `msrec track`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from msrec.data.io.paths import local_path
from msrec.tools.cli.arguments import Config, Overrides, Run


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            help="YAML file of a run; see configs/ for examples. Without it, the run goes on from "
            "the run [b]init_from[/], see below.",
        ),
    ] = None,
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option(help="Dataset folder to train on.", show_default="the config's")
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate", help="Evaluate the run afterwards, without a second start of Python."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check all inputs, print the sharding plan, and train nothing."
        ),
    ] = False,
) -> None:
    """Train a run, or continue it: the same run_id resumes from its newest checkpoint.

    On several ranks: torchx run -s local_cwd msrec.train -j 1x2 -- config=conf.yaml run_id=mine

    The next day's rows: msrec train --data data/day2 init_from=runs/day1

    This trains the new run runs/day2 with the config, the weights and the optimizer state of
    runs/day1, after it has evaluated runs/day1 on the training rows (progressive validation).
    """
    import msrec
    from msrec.launch.training.preemption import STOPPED
    from msrec.tools.cli.evaluation import print_results
    from msrec.tools.cli.terminal import is_main, log_to_terminal, say

    log_to_terminal()
    overrides = overrides or []
    if config is not None and "=" in config and not Path(config).is_file():
        overrides = [config, *overrides]
        config = None
    if dry_run:
        _print_plan(config, overrides, data)
        return
    result = msrec.train(config, overrides, data=data, evaluate=evaluate)
    if result.preempted:
        say(
            f"{result.folder}: stopped by SIGTERM after step {result.steps}, which is saved; the "
            "same command continues"
        )
        # torchrun starts a rank again that fails, so that here the agent reports the stop.
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            sys.exit(STOPPED)
        return
    speed = f" at {result.rows_per_s:,.0f} rows/s" if result.rows_per_s else ""
    metric = "AUC" if result.metric == "auc/all" else result.metric
    say(
        f"{result.folder}: best validation {metric} {result.best_value:.4f} at step "
        f"{result.best_step} of {result.steps}{speed}"
    )
    if evaluate and is_main():
        print_results(result.results())


def _print_plan(config: str | None, overrides: list[str], data: str | None) -> None:
    from msrec.data.schema import load_schema
    from msrec.launch.build_model import plan_model
    from msrec.launch.daily.next_day import training_config
    from msrec.launch.distributed import process_group
    from msrec.launch.knowledge_inputs import KnowledgeInputs
    from msrec.launch.loaders import build_loader
    from msrec.launch.reporting.plan_table import plan_table
    from msrec.tools.cli.terminal import console, is_main, say

    run = training_config(None if config is None else local_path(config), overrides, data)
    with process_group(run.device) as process:
        schema = load_schema(run.dataset)
        knowledge = KnowledgeInputs(run, schema)
        batch = run.trainer.global_batch
        loader = build_loader(run, "train", process, knowledge, batch, shuffle=True)
        model, plan = plan_model(run, schema, knowledge, process, run.plan)
        if is_main():
            console.print(plan_table(plan, model, process.world_size))
        say(
            f"{loader.order.num_rows:,} training rows, {len(loader):,} steps of {batch:,} rows an "
            "epoch"
        )


def encode(
    config: Config,
    overrides: Overrides = None,
    show: Annotated[
        str | None,
        typer.Option(
            help="Print one prompt and stop: user=KEY, scenario=NAME or item=KEY.",
            metavar="LEVEL=KEY",
        ),
    ] = None,
    engine: Annotated[
        Literal["one", "processes", "ray", "ranks"] | None,
        typer.Option(
            help="Who encodes the blocks of keys: this process, several of this machine, Ray (the "
            "extra ray), or the ranks of a job. The vectors are the same.",
            show_default="ranks in a job of several, else one",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Workers on this machine.", show_default="one for each core"),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster, such as 10.0.0.1:6379; its hosts share the folder llm.store.",
            show_default="Ray starts on this machine",
        ),
    ] = None,
) -> None:
    """Encode users and scenarios with the frozen LLM into the knowledge store; resumes.

    With llm.items or llm.sources also the items, once per source.
    """
    # The frozen model's library takes a second to import, which no other command needs.
    from msrec.launch.config.run_config import load_config
    from msrec.launch.encoding.job import EncodeWorkers, encode_config
    from msrec.launch.encoding.progress import EncodeProgress, speed_line
    from msrec.launch.encoding.run_prompts import named_prompt
    from msrec.tools.cli.terminal import console, is_main, log_to_terminal, say

    run = load_config(config, overrides or [])
    if show is not None:
        console.print(named_prompt(run, show), markup=False, highlight=False)
        return
    log_to_terminal()
    with EncodeProgress(is_shown=is_main()) as progress:
        result = encode_config(run, progress.update, EncodeWorkers(engine, workers, address))
    if result is None:  # a rank that worked for rank 0
        return
    for level, counts in result.levels.items():
        line = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        console.print(f"{level}: {line}", highlight=False)
    if result.work.flops:
        console.print(speed_line(result.work), highlight=False)
    say(f"store: {run.llm.store}")


def track(
    run: Run,
    mlflow: Annotated[
        str,
        typer.Option(
            help="MLflow tracking server or database: http://host:5000, sqlite:///mlflow.db."
        ),
    ],
    experiment: Annotated[
        str | None,
        typer.Option(
            help="MLflow experiment that gets the run.", show_default="name of the dataset"
        ),
    ] = None,
) -> None:
    """Send a run's config, curves and results to MLflow; a second call sends what is new."""
    from msrec.launch.reporting.mlflow_tracking import track as send
    from msrec.tools.cli.terminal import say

    say(send(run, mlflow, experiment))
