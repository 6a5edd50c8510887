"""`msrec bench ...`: lists the benches, and imports the module of one when it is chosen."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from msrec.tools.cli.arguments import take_local_paths

BENCHES = {
    "gpu": (
        "gpu.command",
        "Checks of one GPU against the CPU, and its speed: twenty lines within ten minutes.",
    ),
    "loader": ("loader", "Parquet to shuffled batches on one thread, against pyarrow's decoding."),
    "hidden": ("loader", "Training from Parquet, against training on batches in memory."),
    "step": ("step", "A training step, against hand-written loops of plain PyTorch and TorchRec."),
    "tables": ("tables", "FBGEMM's lookup and update of table rows, against a stream copy."),
    "meta": ("meta", "A training step with meta networks, against the bare model."),
    "interest": (
        "meta",
        "A training step with interest blocks, against the same model without them.",
    ),
    "ranks": ("ranks", "Training on two ranks, against one rank with the same global batch."),
    "job": ("job", "An epoch of an MMoE from files to metrics on two ranks, against one rank."),
    "zoo": ("zoo", "A training step of each model, against every row through every tower."),
    "encode": ("encode", "Encoding prompts, against plain loops over padded batches."),
    "store": ("store", "Gathering the vectors of a batch from a store, against a stream copy."),
    "checkpoint": ("checkpoint", "Saving and loading a checkpoint, and the time training waits."),
    "objects": (
        "objects.command",
        "Sending and reading in an object store with latency, against one without.",
    ),
    "planner": ("planner", "Sharding plans for seven sets of tables, against TorchRec's planner."),
    "evaluate": ("evaluate", "Metrics of many predictions, against scikit-learn and polars."),
    "serve": ("serve", "Latency of an export, against its run; then a server under load."),
    "convert": (
        "conversion.command",
        "Converting random rows in parts, against one process.",
    ),
    "chain": (
        "conversion.chain",
        "Random rows from raw files to metrics: the cost of each command, and its memory.",
    ),
    "managed": (
        "drift.command",
        "Managed tables against vocabularies and hashes, on a stream of drifting ids.",
    ),
    "lightgbm": ("boosting.command", "LightGBM over the same histories, an opponent in AUC."),
}
"""Name of a bench -> its module in `msrec.tools.bench`, and one line of help.

The module's function `bench_NAME` is the command: its signature gives the options.
"""

BENCHMARK = Path("configs/benchmark/benchmark.yaml")


class LazyGroup(TyperGroup):
    """Group whose listed commands hold only their help until one is chosen.

    The benches import torch, which would take seconds before `--help` answers.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns name, command and remaining arguments, with the real command of a bench."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in BENCHES else command, rest


def _load(name: str) -> Any:
    module, _ = BENCHES[name]
    function = getattr(import_module(f"msrec.tools.bench.{module}"), f"bench_{name}")
    paragraphs = function.__doc__.partition("Raises:")[0].split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command(name, help=text)(take_local_paths(function))
    return typer.main.get_command(app)


def _not_loaded() -> None:
    """Stands for a bench in the list of commands; `LazyGroup` replaces it before it can run."""
    raise AssertionError("a bench runs through LazyGroup")


bench_app = typer.Typer(
    name="bench",
    cls=LazyGroup,
    help="Speed, memory and quality, measured against a reference.",
    no_args_is_help=True,
)
for _name, (_, _help) in BENCHES.items():
    bench_app.command(_name, help=_help)(_not_loaded)


@bench_app.command("table")
def bench_table(
    raw: Annotated[Path, typer.Argument(help="Folder with a folder of raw data per data set.")],
    out: Annotated[
        Path, typer.Option(help="Folder for data and trainings; a second call resumes there.")
    ] = Path("runs/benchmark"),
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="Name of a data set to run; may be repeated.", show_default="all"),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Name of a model to run; may be repeated.", show_default="all"),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trainings that tune each model.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings that evaluate each model.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Number of trainings at the same time.")] = 1,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check every config and list what is left to run."),
    ] = False,
    page: Annotated[
        Path | None,
        typer.Option(help="Markdown file to write, such as docs/results/benchmark.md."),
    ] = None,
) -> None:
    """Compare all models on all data sets: tuned alike on validation, evaluated over seeds.

    Reads configs/benchmark/benchmark.yaml. Also writes the page to OUT/table.md.
    """
    from msrec.data.io.outputs import FileKind, check_output, contains
    from msrec.tools.cli.terminal import say
    from msrec.tools.experiment.benchmark_page import BENCHMARK_COMMAND, benchmark_page
    from msrec.tools.experiment.runner import run_sweep
    from msrec.tools.experiment.sweep import load_sweep

    if not BENCHMARK.is_file():
        raise FileNotFoundError(f"{BENCHMARK} must exist: run this from the root of a checkout.")
    everything = load_sweep(BENCHMARK)
    sweep = everything.subset(benchmark or [], model or [])
    sweep = sweep.model_copy(update={"raw": raw, "out": out, "trials": trials, "seeds": seeds})
    pages = [path for path in (out / "table.md", page) if path is not None]
    for path in pages:
        check_output(path, FileKind("a page of msrec bench table", contains(BENCHMARK_COMMAND)))
    run_sweep(sweep, jobs, dry_run)
    if not dry_run:
        text = benchmark_page(sweep, everything)
        for path in pages:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        say(text)
