"""What each command does on every rank: read the config, join the group, run, report."""

import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from rich.console import Console
from rich.logging import RichHandler

from msrec.data.io.atomic_files import write_json
from msrec.data.io.paths import AnyPath, to_path
from msrec.data.schema import Split, load_schema
from msrec.launch.build_model import plan_model
from msrec.launch.cluster.job_specs import EVALUATE_OPTIONS, PREDICT_OPTIONS, read_options
from msrec.launch.config import RunConfig, load_config, save_config
from msrec.launch.console import wide_console
from msrec.launch.distributed import end_with_launcher, process_group, quiet_libraries
from msrec.launch.evaluation.compare import DIRECTION, compare, find_predictions
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.predict_files import predict_files
from msrec.launch.evaluation.results import Results
from msrec.launch.evaluation.slices import SLICE_TITLES, SLICES, Slice
from msrec.launch.evaluation.watch import watch
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import build_loader
from msrec.launch.reporting.difference_table import differences_table, verdict
from msrec.launch.reporting.plan_table import plan_table
from msrec.launch.reporting.result_tables import results_tables, slice_table
from msrec.launch.serving.export_folder import DenseDtype, TableDtype
from msrec.launch.trained_run import load_run_config, open_run
from msrec.launch.training.preemption import STOPPED
from msrec.launch.training.trainer import Trainer
from msrec.launch.versions import installed_versions
from msrec.model.metrics.exact import MetricOptions

console = wide_console()
SCENARIO = "scenario"


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
        knowledge = KnowledgeInputs(config, schema)
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


def evaluate_job(
    run: Path,
    overrides: Sequence[str],
    split: str,
    by: str,
    data: str | None,
    judging: MetricOptions,
) -> None:
    """Evaluate a run or a checkpoint and print its tables.

    Args:
        run: a run folder, or a checkpoint in one.
        overrides: `split=`, `checkpoint=`, `by=` and `data=`, over the arguments.
        split: train, valid or test.
        by: slices besides the scenarios, with commas.
        data: another dataset folder than the run's own.
        judging: places of the rankings and the making of intervals.
    """
    options = read_options(overrides, EVALUATE_OPTIONS)
    slices = _slices(options.get("by", by))
    wanted, folder = options.get("split", split), options.get("data", data)
    if wanted not in get_args(Split):
        raise ValueError(f"split must be train, valid or test; got {wanted!r}.")
    checkpoint = Path(options["checkpoint"]) if "checkpoint" in options else None
    scored = to_path(folder) if folder else None
    with process_group() as process:
        _log_to_terminal(process.is_main)
        asked = (cast(Split, wanted), checkpoint, slices, scored, judging)
        results = evaluate(run, process, *asked)
        if results is not None:
            for table in results_tables(results):
                console.print(table)
            for name in results.slices:
                console.print(slice_table(results, name, SLICE_TITLES[name]))


def watch_job(run_dir: Path, split: Split, data: str | None, every_s: float) -> None:
    """Evaluate each new checkpoint of a run, and tell of it."""

    def tell(step: int, found: Results) -> None:
        shown = found.metrics.all
        console.print(
            f"step {step:,}: {split} AUC {shown.auc or math.nan:.4f}, log loss "
            f"{shown.log_loss or math.nan:.4f}",
            highlight=False,
        )

    load_run_config(run_dir)
    with process_group() as process:
        _log_to_terminal(process.is_main)
        scored = to_path(data) if data else None
        count = watch(run_dir, process, split, scored, every_s, tell)
        if process.is_main:
            console.print(f"{run_dir} has ended; {count} checkpoints evaluated", soft_wrap=True)


def _slices(by: str) -> list[Slice]:
    """The slices of a list with commas; scenarios are always shown.

    Raises:
        ValueError: one is unknown.
    """
    slices: list[Slice] = []
    for name in filter(None, by.split(",")):
        if name not in (SCENARIO, *SLICES):
            raise ValueError(
                f"by must name some of {', '.join((SCENARIO, *SLICES))}; got {name!r}."
            )
        slices += [name] if name in SLICES else []
    return slices


def compare_job(
    runs: tuple[Path, Path],
    split: Split,
    data: str | None,
    metric: str,
    k: int,
    as_json: bool,
) -> None:
    """Compare the predictions of two runs: a table and a verdict, or all metrics as JSON.

    Raises:
        FileNotFoundError: a run was not evaluated.
        ValueError: the metric cannot be compared, or the runs did not score the same rows.
    """
    if metric not in DIRECTION:
        raise ValueError(f"metric must be one of {', '.join(DIRECTION)}; got {metric!r}.")
    scored = to_path(data) if data else None
    first, second = (find_predictions(run, split, scored) for run in runs)
    names = (runs[0].name, runs[1].name)
    if names[0] == names[1]:
        names = (str(runs[0]), str(runs[1]))
    found = compare(first, second, names, k)
    if as_json:
        console.print_json(found.model_dump_json())
        return
    console.print(differences_table(found, metric))
    console.print(verdict(found, metric), markup=False, highlight=False, soft_wrap=True)


def predict_job(
    run_dir: Path,
    overrides: Sequence[str],
    data: Sequence[AnyPath],
    out: AnyPath | None,
    columns: str | None,
    dataset: str | None,
) -> None:
    """Score the rows of Parquet files; options are given either way."""
    options = read_options(overrides, PREDICT_OPTIONS)
    data = [*data, *map(to_path, filter(None, options.get("data", "").split(",")))]
    out = to_path(options["out"]) if "out" in options else out
    if not data or out is None:
        raise ValueError("msrec predict needs data=FILES, the Parquet files to score, and out=DIR.")
    columns, dataset = options.get("columns", columns), options.get("dataset", dataset)
    keep = None if columns is None else [name for name in columns.split(",") if name]
    checkpoint = Path(options["checkpoint"]) if "checkpoint" in options else None
    with process_group() as process:
        _log_to_terminal(process.is_main)
        run = open_run(run_dir, process, checkpoint, None if dataset is None else to_path(dataset))
        summary = predict_files(run, process, data, out, keep)
        if summary is not None:
            console.print(summary.sentence(out), highlight=False, soft_wrap=True)


def export_job(
    run_dir: Path,
    out: Path,
    checkpoint: Path | None,
    split: Split,
    tables: TableDtype,
    dense: DenseDtype,
    *,
    compiled: bool,
    overwrite: bool,
) -> None:
    """Export a run, and tell how it scores beside the run."""
    from msrec.launch.serving.export import export

    with process_group("cpu") as process:
        _log_to_terminal(process.is_main)
        options = {"compiled": compiled, "overwrite": overwrite}
        made = export(run_dir, out, process, checkpoint, split, tables, dense, **options)
    found = made.parity
    assert found is not None
    console.print(
        f"AUC of {found.rows:,} {split} rows: run {found.auc_run:.6f}, export "
        f"{found.auc_export:.6f} ({found.auc_difference:+.6f}); scores differ by at most "
        f"{found.largest_difference:.2g}, {found.mean_difference:.2g} on average",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"wrote {out}", soft_wrap=True)


def encode_job(config_file: Path, overrides: Sequence[str], show: str | None) -> None:
    """Encode all levels into `llm.store`, or print one prompt."""
    # Here, for transformers takes a second to import, which no other job needs.
    from msrec.launch.encoding.encode import LEVELS, encode
    from msrec.launch.encoding.progress import EncodeProgress, speed_line

    config = load_config(config_file, overrides)
    llm = config.llm
    if show is not None:
        console.print(_prompt(config, show), markup=False, highlight=False)
        return
    if llm.store is None:
        raise ValueError(f"{config_file}: llm.store must name a folder; it is not given.")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    end_with_launcher()
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
    from msrec.launch.encoding.encode import LEVELS
    from msrec.launch.encoding.run_prompts import prompts_by_key

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
    from msrec.launch.reporting.report import write_report

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
