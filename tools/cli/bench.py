"""`msrec bench ...`: lists the benches, and imports the module of one when it is chosen."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

BENCHES = {
    "loader": ("loader", "Parquet to shuffled batches on one thread, against pyarrow's decoding."),
    "hidden": ("loader", "Training from Parquet, against training on batches in memory."),
    "step": ("step", "A training step, against hand-written loops of plain PyTorch and TorchRec."),
    "tables": ("tables", "FBGEMM's lookup and update of table rows, against a stream copy."),
    "meta": ("meta", "A training step with meta networks, against the bare model."),
    "ranks": ("ranks", "Training on two ranks, against one rank with the same global batch."),
    "job": ("job", "An epoch of an MMoE from files to metrics on two ranks, against one rank."),
    "zoo": ("zoo", "A training step of each model, against every row through every tower."),
    "encode": ("encode", "Encoding prompts, against a plain loop over padded batches."),
    "store": ("store", "Gathering the vectors of a batch from a store, against a stream copy."),
    "checkpoint": ("checkpoint", "Saving and loading a checkpoint, and the time training waits."),
    "planner": ("planner", "Sharding plans for five sets of tables, against TorchRec's planner."),
    "evaluate": ("evaluate", "Metrics of many predictions, against scikit-learn and polars."),
    "serve": ("serve", "Latency of an export, against its run; then a server under load."),
}
"""Name of a bench -> its module in `msrec.tools.bench`, and one line of help.

The module's function `bench_NAME` is the command: its signature gives the options.
"""


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
    app.command(name, help=text)(function)
    return typer.main.get_command(app)


def _not_loaded() -> None:
    """Stands for a bench in the list of commands; `LazyGroup` replaces it before it can run."""
    raise AssertionError("a bench runs through LazyGroup")


bench_app = typer.Typer(
    name="bench",
    cls=LazyGroup,
    help="Speed and memory, measured against a reference.",
    no_args_is_help=True,
)
for _name, (_, _help) in BENCHES.items():
    bench_app.command(_name, help=_help)(_not_loaded)


@bench_app.command("table")
def bench_table(
    raw: Annotated[Path, typer.Argument(help="folder of the raw data sets: ml1m/, ...")],
    out: Annotated[
        Path, typer.Option(help="folder for data and trainings; a second call resumes there")
    ] = Path("runs/benchmark"),
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="only this data set; may be repeated", show_default="all"),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="only this model; may be repeated", show_default="all"),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="trainings to tune each model with")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="trainings to judge each model with")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="trainings at the same time")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what is left to run, and stop")
    ] = False,
    page: Annotated[
        Path | None, typer.Option(help="Markdown file to write, as docs/benchmark.md")
    ] = None,
) -> None:
    """Quality of every model on every data set: tuned alike on validation, judged over seeds."""
    from msrec.tools.experiment.benchmark_table import bench_table as run

    run(raw, out, benchmark or [], model or [], trials, seeds, jobs, dry_run, page)
