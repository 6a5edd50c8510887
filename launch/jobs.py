"""What each command does on every rank: read the config, join the group, run, report."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from rich.console import Console
from rich.logging import RichHandler

from msrec.data.files import write_json
from msrec.data.paths import AnyPath, to_path
from msrec.data.schema import Split, load_schema
from msrec.launch.build import Knowledge, build_loader, plan_model
from msrec.launch.config import RunConfig, load_config, save_config
from msrec.launch.evaluate import evaluate
from msrec.launch.options import EVALUATE, PREDICT, read_options
from msrec.launch.plan_table import plan_table
from msrec.launch.predict_files import predict_files, told
from msrec.launch.preemption import STOPPED
from msrec.launch.process import process_group, quiet_libraries
from msrec.launch.restore import restore
from msrec.launch.results import results_table, slice_table
from msrec.launch.slices import SLICES, Slice
from msrec.launch.terminal import wide_console
from msrec.launch.trainer import Trainer
from msrec.launch.versions import installed_versions

console = wide_console()


def train_job(config_file: Path, overrides: Sequence[str]) -> None:
    """Train or resume a run."""
    config = load_config(config_file, overrides)
    with process_group() as process:
        _log_to_terminal(process.is_main)
        trainer = Trainer(config, process)
        progress = trainer.resume()  # a config that does not fit the run must not replace its own
        if process.is_main:
            config.run_dir.mkdir(parents=True, exist_ok=True)
            save_config(config, config.run_dir / "config.yaml")
            write_json(config.run_dir / "versions.json", installed_versions())
        result = trainer.fit(progress)
        if result.preempted:
            if process.is_main:
                console.print(
                    f"{config.run_dir}: stopped by SIGTERM after step {progress.step}, which is "
                    "saved; the same command goes on from there",
                    soft_wrap=True,
                )
            # Under torchrun a rank that fails is started again; what failed is the agent's to say.
            if "TORCHELASTIC_RUN_ID" not in os.environ:
                sys.exit(STOPPED)
            return
        if process.is_main:
            speed = f" at {result.rows_per_s:,.0f} rows/s" if result.losses else ""
            console.print(
                f"{config.run_dir}: best validation AUC {progress.best_auc:.4f} at step "
                f"{progress.best_step} of {progress.step}{speed}",
                soft_wrap=True,
            )


def dry_run_job(config_file: Path, overrides: Sequence[str]) -> None:
    """Check all that a run reads and print its plan and its size; nothing is written."""
    config = load_config(config_file, overrides)
    with process_group() as process:
        _log_to_terminal(process.is_main)
        schema = load_schema(config.dataset)
        knowledge = Knowledge(config, schema)
        batch = config.trainer.global_batch
        loader = build_loader(config, "train", process, knowledge, batch, shuffle=True)
        model, plan = plan_model(config, schema, knowledge, process, config.plan)
        if process.is_main:
            console.print(plan_table(plan, model, process.world_size))
            console.print(
                f"{loader.order.num_rows:,} training rows, {len(loader):,} steps of {batch:,} rows "
                f"an epoch",
                highlight=False,
            )


def evaluate_job(run_dir: Path, overrides: Sequence[str], split: Split, by: str) -> None:
    """Evaluate a run and print its tables; `by` names slices besides the scenarios."""
    options = read_options(overrides, EVALUATE)
    slices: list[Slice] = []
    for name in filter(None, options.get("by", by).split(",")):
        if name not in SLICES:
            raise ValueError(f"by must name some of {', '.join(SLICES)}; got {name!r}.")
        slices.append(name)
    wanted = options.get("split", split)
    if wanted not in get_args(Split):
        raise ValueError(f"split must be train, valid or test; got {wanted!r}.")
    checkpoint = Path(options["checkpoint"]) if "checkpoint" in options else None
    with process_group() as process:
        _log_to_terminal(process.is_main)
        results = evaluate(run_dir, process, cast(Split, wanted), checkpoint, slices)
        if results is not None:
            console.print(results_table(results))
            for name in results.slices:
                console.print(slice_table(results, name))


def predict_job(
    run_dir: Path,
    overrides: Sequence[str],
    data: Sequence[AnyPath],
    out: AnyPath | None,
    columns: str | None,
) -> None:
    """Score the rows of Parquet files; options are given either way."""
    options = read_options(overrides, PREDICT)
    data = [*data, *map(to_path, filter(None, options.get("data", "").split(",")))]
    out = to_path(options["out"]) if "out" in options else out
    if not data or out is None:
        raise ValueError("msrec predict needs data=FILES, the Parquet files to score, and out=DIR.")
    columns = options.get("columns", columns)
    keep = None if columns is None else [name for name in columns.split(",") if name]
    checkpoint = Path(options["checkpoint"]) if "checkpoint" in options else None
    with process_group() as process:
        _log_to_terminal(process.is_main)
        run = restore(run_dir, process, checkpoint)
        found = predict_files(run, process, data, out, keep)
        if found is not None:
            console.print(told(found, out), highlight=False, soft_wrap=True)


def encode_job(config_file: Path, overrides: Sequence[str], show: str | None) -> None:
    """Encode all levels into `llm.store`, or print one prompt."""
    # Here, for transformers takes a second to import, which no other job needs.
    from msrec.launch.encode import LEVELS, encode
    from msrec.launch.encode_progress import EncodeProgress, speed_line

    config = load_config(config_file, overrides)
    llm = config.llm
    if show is not None:
        console.print(_prompt(config, show), markup=False, highlight=False)
        return
    if llm.store is None:
        raise ValueError(f"{config_file}: llm.store must name a folder; it is not given.")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    _log_to_terminal(rank == 0)
    with EncodeProgress(is_shown=rank == 0) as progress:
        result = encode(
            config.dataset,
            llm.store,
            **llm.encoding,
            batch_tokens=llm.batch_tokens,
            trust_remote_code=llm.trust_remote_code,
            previous=llm.previous,
            levels=LEVELS if llm.items else LEVELS[:2],
            rank=rank,
            world_size=world_size,
            on_progress=progress.update,
        )
    for level, of_level in result.levels.items():
        told = ", ".join(f"{name} {count:,}" for name, count in of_level.items())
        console.print(f"rank {rank} {level}: {told}", highlight=False)
    if result.speed is not None:
        console.print(f"rank {rank}: {speed_line(result.speed)}", highlight=False)
    if rank == 0:
        console.print(f"store: {llm.store}", soft_wrap=True)


def _prompt(config: RunConfig, show: str) -> str:
    """One prompt by `user=KEY`, `scenario=NAME` or `item=KEY`."""
    from msrec.launch.encode import LEVELS
    from msrec.launch.prompts import prompts_by_key

    level, _, wanted = show.partition("=")
    if level not in LEVELS:
        raise ValueError(f"--show must be user=KEY, scenario=NAME or item=KEY; got {show!r}.")
    prompts = prompts_by_key(config, level)
    if wanted in prompts:
        return prompts[wanted]
    raise ValueError(
        f"{config.dataset} must hold the {level} {wanted!r}; it is not among {len(prompts)}."
    )


def report_job(out: Path, runs: Sequence[str]) -> None:
    """Write the HTML page of evaluated runs."""
    from msrec.launch.report import write_report

    named = {}
    for run in runs:
        name, equals, folder = run.partition("=")
        named[name if equals else Path(run).name] = Path(folder if equals else run)
    write_report(out, named)
    console.print(f"wrote {out}")


def _log_to_terminal(is_main: bool) -> None:
    level = logging.INFO if is_main else logging.ERROR
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("msrec").setLevel(level)
    quiet_libraries()
