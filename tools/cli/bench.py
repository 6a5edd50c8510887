"""`msrec bench ...`: what speed is against a reference, and the tables of the pages in docs/."""

from pathlib import Path
from typing import Annotated

import typer

from msrec.data.io.paths import local_path
from msrec.tools.cli.arguments import Config, Overrides

bench_app = typer.Typer(help="The tables of the README and of docs/, remade.", no_args_is_help=True)
Dataset = Annotated[
    Path | None,
    typer.Option(parser=local_path, help="a dataset folder [default: random rows as MovieLens-1M]"),
]
Batch = Annotated[int, typer.Option(min=16, help="rows of a step")]
Repeats = Annotated[int, typer.Option(min=1, help="rounds, of which the median counts")]


@bench_app.command("loader")
def bench_loader(
    dataset: Dataset = None,
    batch: Batch = 4096,
    batches: Annotated[int, typer.Option(min=2, help="of the random rows")] = 100,
    repeats: Repeats = 9,
) -> None:
    """Parquet to shuffled batches on one thread, against pyarrow's decoding."""
    from msrec.tools.bench.loader import bench_loader as bench

    bench(dataset, batch, batches, repeats)


@bench_app.command("hidden")
def bench_hidden(
    dataset: Dataset = None,
    batch: Batch = 4096,
    steps: Annotated[int, typer.Option(min=2, help="of a round")] = 60,
    repeats: Repeats = 7,
) -> None:
    """Training from Parquet, against training on batches in memory."""
    from msrec.tools.bench.loader import bench_hidden as bench

    bench(dataset, batch, steps, repeats)


@bench_app.command("step")
def bench_step(
    shapes: Annotated[
        str, typer.Option(help="movielens; large: 8 tables of 1e6 x 64, 20 ids a bag (5 GB)")
    ] = "movielens",
    dataset: Dataset = None,
    batch: Batch = 4096,
    steps: Annotated[int, typer.Option(min=1, help="of a round; a tenth on large")] = 20,
    repeats: Repeats = 15,
) -> None:
    """A bare training step, against hand-written loops of plain PyTorch and of TorchRec."""
    from msrec.tools.bench.step import bench_step as bench
    from msrec.tools.cli.convert import comma_list

    bench(comma_list("shapes", shapes, str), batch, steps, repeats, dataset)


@bench_app.command("tables")
def bench_tables(
    dims: Annotated[str, typer.Option(help="sizes of a vector")] = "16,64,128",
    gib: Annotated[float, typer.Option(min=0.001, help="GiB of the tables")] = 1.0,
    tables: Annotated[int, typer.Option(min=1)] = 4,
    batch: Batch = 4096,
    ids: Annotated[int, typer.Option(min=1, help="of a bag")] = 20,
    repeats: Repeats = 9,
) -> None:
    """FBGEMM's lookup and update alone, against a stream copy."""
    from msrec.tools.bench.tables import bench_tables as bench
    from msrec.tools.cli.convert import comma_list

    bench(comma_list("dims", dims, int), gib, tables, batch, ids, repeats)


@bench_app.command("meta")
def bench_meta(
    batch: Batch = 4096,
    steps: Annotated[int, typer.Option(min=1, help="of a round")] = 10,
    repeats: Repeats = 7,
) -> None:
    """What the meta networks add to a step; contracted layers against a matrix per row."""
    from msrec.tools.bench.meta import bench_meta as bench

    bench(batch, steps, repeats)


@bench_app.command("ranks")
def bench_ranks(
    dataset: Dataset = None,
    batch: Batch = 4096,
    steps: Annotated[int, typer.Option(min=1, help="of a round")] = 20,
    repeats: Repeats = 9,
) -> None:
    """Two ranks against one, with the same global batch."""
    from msrec.tools.bench.ranks import bench_ranks as bench

    bench(dataset, batch, steps, repeats)


@bench_app.command("cold")
def bench_cold(repeats: Repeats = 5) -> None:
    """`msrec --help`, and `msrec train` to its first step."""
    from msrec.tools.bench.cold import bench_cold as bench

    bench(repeats)


@bench_app.command("job")
def bench_job(
    dataset: Dataset = None,
    batch: Batch = 4096,
    batches: Annotated[int, typer.Option(min=2, help="of the random rows")] = 195,
    repeats: Repeats = 1,
) -> None:
    """One epoch of an MMoE from files to metrics, on one rank and on two."""
    from msrec.tools.bench.job import bench_job as bench

    bench(dataset, batch, batches, repeats)


@bench_app.command("growth")
def bench_growth(
    rows: Annotated[str, typer.Option(help="of the data; empty leaves a series out")] = "1e5,1e6",
    scenarios: Annotated[str, typer.Option()] = "2,20,200",
    users: Annotated[str, typer.Option(help="rows of the users' table")] = "1e4,1e5,1e6",
    tables: Annotated[str, typer.Option()] = "10,100,1000",
    ranks: Annotated[str, typer.Option(help="more than cores, so bytes and no time")] = "2,4",
    page: Annotated[Path, typer.Option(help="HTML to write")] = Path("runs/bench/growth.html"),
) -> None:
    """Flat or linear as rows, scenarios, users, tables and ranks grow; drawn."""
    from msrec.tools.bench.growth import bench_growth as bench
    from msrec.tools.cli.convert import comma_list

    texts = {"rows": rows, "scenarios": scenarios, "users": users, "tables": tables, "ranks": ranks}
    bench({n: [int(x) for x in comma_list(n, t, float)] for n, t in texts.items()}, page)


@bench_app.command("table")
def bench_table(
    raw: Annotated[Path, typer.Argument(help="folder of the raw data sets: ml1m/, ...")],
    out: Annotated[Path, typer.Option(help="where data and cells go; resumes there")] = Path(
        "runs/benchmark"
    ),
    benchmark: Annotated[
        list[str] | None, typer.Option(help="only these data sets; may be repeated")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="only these; may be repeated")] = None,
    trials: Annotated[int, typer.Option(min=1, help="trainings to tune with, each")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="trainings to judge, each")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="cells at the same time")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what is left to run")] = False,
    page: Annotated[Path | None, typer.Option(help="Markdown file, as docs/benchmark.md")] = None,
) -> None:
    """Every model on every data set: tuned alike on validation, judged over seeds."""
    from msrec.tools.experiment.benchmark_table import bench_table as bench

    bench(raw, out, benchmark or [], model or [], trials, seeds, jobs, dry_run, page)


@bench_app.command("zoo")
def bench_zoo(
    model: Annotated[list[str] | None, typer.Option(help="only these; may be repeated")] = None,
    scenarios: Annotated[str, typer.Option(help="numbers of scenarios")] = "2,20,200",
    batch: Annotated[int, typer.Option(min=1, help="rows of a step")] = 4096,
    repeats: Annotated[int, typer.Option(min=1, help="the fastest counts")] = 5,
) -> None:
    """Time of a step of every model, against every row through every tower."""
    from msrec.tools.bench.zoo import bench_zoo as bench
    from msrec.tools.cli.convert import comma_list

    bench(model or [], comma_list("scenarios", scenarios, int), batch, repeats)


@bench_app.command("encode")
def bench_encode(
    config: Config,
    overrides: Overrides = None,
    prompts: Annotated[int, typer.Option(min=2, help="users, drawn by a seed")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="prompts of a batch of the plain loop")] = 8,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Prompts a second of `encode` beside a plain loop over padded batches in order of arrival."""
    from msrec.tools.bench.llm import bench_encode as bench

    bench(config, overrides or [], prompts, batch, repeats)


@bench_app.command("store")
def bench_store(
    keys: Annotated[int, typer.Option(min=1000, help="of the made-up store")] = 500_000,
    batch: Annotated[int, typer.Option(min=1, help="distinct keys at a time")] = 4096,
    repeats: Annotated[int, typer.Option(min=3)] = 50,
) -> None:
    """How fast the vectors of a batch come out of a store that is in the page cache."""
    from msrec.tools.bench.llm import bench_store as bench

    bench(keys, batch, repeats)


@bench_app.command("probe")
def bench_probe(
    dataset: Annotated[Path, typer.Argument(parser=local_path, help="a dataset folder")],
    store: Annotated[list[Path] | None, typer.Option(help="a knowledge store; repeat")] = None,
    feature: Annotated[str, typer.Option(help="of items, single values")] = "category",
    few: Annotated[int, typer.Option(min=2, help="users with fewer training rows than this")] = 20,
    users: Annotated[int, typer.Option(min=10, help="to learn from, beside all there are")] = 450,
) -> None:
    """What stores tell of users with few rows, against plain counts of the same rows."""
    from msrec.tools.bench.probe import bench_probe as bench

    bench(dataset, store or [], feature, few, users)


@bench_app.command("checkpoint")
def bench_checkpoint(
    gib: Annotated[float, typer.Option(min=0.01, help="GiB of weights")] = 1.0,
    out: Annotated[Path, typer.Option(help="folder for them; emptied")] = Path("runs/checkpoint"),
    repeats: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """How long a checkpoint holds training up, is written, and is read."""
    from msrec.tools.bench.checkpoint import bench_checkpoint as bench

    bench(gib, out, repeats)


@bench_app.command("scale")
def bench_scale(
    rows: Annotated[str, typer.Option(help="sizes of the simulated app")] = "1e6,1e7,1e8",
    out: Annotated[Path, typer.Option(help="folder for the data; emptied")] = Path("runs/scale"),
    layout_rows: Annotated[
        int, typer.Option(min=0, help="rows to cut into files and row groups of many sizes")
    ] = 10_000_000,
) -> None:
    """Rows a second and memory from a million rows to a hundred, however files are cut."""
    from msrec.tools.bench.scale import bench_scale as bench
    from msrec.tools.cli.convert import comma_list

    bench([int(size) for size in comma_list("rows", rows, float)], out, layout_rows)


@bench_app.command("planner")
def bench_planner(
    seconds: Annotated[int, typer.Option(min=10, help="for TorchRec, on each set")] = 600,
) -> None:
    """Our plans beside the best of TorchRec's proposers and partitioners, on five sets."""
    from msrec.tools.bench.planner import bench_planner as bench

    bench(seconds)


@bench_app.command("evaluate")
def bench_evaluate(
    rows: Annotated[float, typer.Option(min=1000, help="predictions")] = 1e7,
    users: Annotated[float, typer.Option(min=10)] = 1e6,
    scenarios: Annotated[int, typer.Option(min=1)] = 10,
    resamples: Annotated[int, typer.Option(min=1)] = 1000,
    repeats: Annotated[int, typer.Option(min=1, help="the fastest counts")] = 1,
    out: Annotated[Path, typer.Option(help="folder for the predictions; emptied")] = Path(
        "runs/bench_evaluate"
    ),
) -> None:
    """Seconds and memory of judging predictions, beside scikit-learn scenario by scenario."""
    from msrec.tools.bench.evaluate import bench_evaluate as bench

    bench(int(rows), int(users), scenarios, resamples, repeats, out)


@bench_app.command("intervals")
def bench_intervals(
    users: Annotated[str, typer.Option(help="of a sample")] = "15,50,200",
    samples: Annotated[int, typer.Option(min=10)] = 1000,
    resamples: Annotated[int, typer.Option(min=10)] = 1000,
) -> None:
    """How often the 95 % intervals of `evaluate` hold the true value, on simulated users."""
    from msrec.tools.bench.intervals import bench_intervals as bench
    from msrec.tools.cli.convert import comma_list

    bench(comma_list("users", users, int), samples, resamples)


@bench_app.command("serve")
def bench_serve(
    run: Annotated[Path, typer.Argument(help="run folder")],
    export: Annotated[
        Path | None, typer.Option(help="of `msrec export` [default: RUN/export]")
    ] = None,
    repeats: Annotated[int, typer.Option(min=3, help="calls of each kind")] = 200,
    seconds: Annotated[float, typer.Option(min=0.1, help="of each load over HTTP")] = 5,
    out: Annotated[Path, typer.Option(help="JSON file")] = Path("runs/serve.json"),
) -> None:
    """Latency of an export beside its run's own model, and a server under load."""
    from msrec.tools.bench.serve import bench_serve as bench

    bench(run, export or run / "export", repeats, seconds, out)
