"""The `msrec` command. Heavy imports stand inside the commands: `--help` answers at once."""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from msrec.data.io.paths import local_path, redacted, to_path
from msrec.tools.cli.arguments import Config, Overrides
from msrec.tools.cli.bench import bench_app
from msrec.tools.cli.convert import convert_app
from msrec.tools.cli.launch import launch_app
from msrec.tools.cli.plan import plan
from msrec.tools.cli.serving import export, score, serve

app = typer.Typer(
    name="msrec",
    help=__doc__.partition(".")[0]
    + ". Multi-scenario recommendation with a frozen LLM in the loop.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(convert_app, name="convert")
app.add_typer(bench_app, name="bench")
app.add_typer(launch_app, name="launch")
for command in (export, score, serve):
    app.command()(command)


@app.callback()
def check_versions(context: typer.Context) -> None:
    """Refuse a wrong torch / fbgemm / torchrec before anything imports them."""
    if context.invoked_subcommand != "doctor":
        from msrec.launch.versions import require_versions

        require_versions()


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, print the sharding plan, stop")
    ] = False,
) -> None:
    """Train a run, or go on with it: the same run_id resumes from its newest checkpoint.

    On several ranks: torchx run -s local_cwd msrec.train -j 1x2 -- config=conf.yaml run_id=mine
    """
    from msrec.tools.cli.jobs import dry_run_job, train_job

    (dry_run_job if dry_run else train_job)(config, overrides or [])


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="run folder, or a checkpoint in its checkpoints/")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="split=valid, checkpoint=FOLDER, data=, by=")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="another dataset folder; its ids are matched by value")
    ] = None,
    split: Annotated[Literal["train", "valid", "test"], typer.Option()] = "test",
    by: Annotated[
        str, typer.Option(help="slices: scenario (always), day, user_history, item_history")
    ] = "",
    k: Annotated[int, typer.Option(min=1, help="places of NDCG and recall")] = 10,
    resamples: Annotated[
        int, typer.Option(min=0, help="of the users, for 95 % intervals; 0 leaves them out")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="of the resamples")] = 0,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="score each new checkpoint, and add it to the run's curves"),
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="seconds between two looks")] = 10.0,
) -> None:
    """Score a split with a run's best checkpoint; exact metrics with intervals, docs/evaluation.md.

    On several ranks: torchx run -s local_cwd msrec.evaluate -j 1x2 -- run=runs/first split=test
    """
    from msrec.model.metrics.exact import MetricOptions
    from msrec.tools.cli.jobs import evaluate_job, watch_job

    if watch:
        watch_job(run, split, data, every)
        return
    evaluate_job(run, overrides or [], split, by, data, MetricOptions(k, resamples, seed))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="evaluated run, checkpoint or predictions folder")],
    second: Annotated[Path, typer.Argument(help="another one, of the same rows")],
    split: Annotated[Literal["train", "valid", "test"], typer.Option()] = "test",
    data: Annotated[
        str | None, typer.Option(help="the dataset folder that both were evaluated on with --data")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="auc, log_loss, ne, rig, average_precision, gauc, ndcg, recall")
    ] = "auc",
    k: Annotated[int, typer.Option(min=1, help="places of NDCG and recall")] = 10,
    json: Annotated[bool, typer.Option("--json", help="print all metrics as JSON instead")] = False,
) -> None:
    """Is the second run better? Paired differences over users, per scenario, with a verdict."""
    from msrec.tools.cli.jobs import compare_job

    compare_job((first, second), split, data, metric, k, json)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="run folder, such as runs/demo")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="the options as data=A,B out=DIR columns=A,B; checkpoint=FOLDER"),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Parquet file or folder, s3://... too; may be repeated. Raw values, or ids as in "
            "the run's data set; labels are not needed",
            parser=to_path,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder to write, s3://... too", parser=to_path)
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="to keep beside score [default: user,item,scenario]")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="folder whose ids the files have, if not the run's; matched by value"),
    ] = None,
) -> None:
    """Score the rows of any Parquet files with a run: rows in = rows out; resumes after a kill.

    On several ranks: msrec launch predict runs/demo data=new out=scores -j 1x2
    """
    from msrec.tools.cli.jobs import predict_job

    predict_job(run, overrides or [], data or [], out, columns, dataset)


@app.command()
def encode(
    config: Config,
    overrides: Overrides = None,
    show: Annotated[
        str | None, typer.Option(help="print one prompt and stop: user=KEY or scenario=NAME")
    ] = None,
) -> None:
    """Read users and scenarios with the frozen LLM into the store; resumes after a kill."""
    from msrec.tools.cli.jobs import encode_job

    encode_job(config, overrides or [], show)


@app.command()
def experiment(
    sweep: Annotated[Path, typer.Argument(help="YAML file, see configs/experiment/")],
    jobs: Annotated[int, typer.Option(min=1, help="trainings at the same time")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check every config, say what is left to run")
    ] = False,
) -> None:
    """Does the knowledge help? Data sets x models x arms x seeds, with controls; resumes.

    Writes report.md, report.html and results.parquet into the sweep's folder.
    """
    from msrec.tools.experiment.sweep import experiment as run

    run(sweep, jobs, dry_run)


@app.command()
def synthetic(
    out: Annotated[Path, typer.Argument(help="dataset folder to make", parser=local_path)],
    rows: Annotated[int, typer.Option(min=1000)] = 200_000,
    users: Annotated[int, typer.Option(min=10)] = 600,
    items: Annotated[int, typer.Option(min=10)] = 2_000,
    seed: Annotated[int, typer.Option()] = 0,
    cold: Annotated[float, typer.Option(help="share of users with next to no history")] = 0.25,
    tables: Annotated[
        Path | None,
        typer.Option(help="instead of the app, random rows for the tables of this YAML or CSV"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
) -> None:
    """A simulated short-video app whose best possible AUC is known."""
    from msrec.tools.convert import make_random, make_synthetic

    if tables is not None:
        make_random(out, tables, rows, users, items, seed, overwrite)
        return
    make_synthetic(
        out, rows=rows, users=users, items=items, seed=seed, cold_fraction=cold, overwrite=overwrite
    )


@app.command()
def show(
    folder: Annotated[
        Path,
        typer.Argument(
            help="dataset (s3://bucket/app too), knowledge store, run or checkpoint", parser=to_path
        ),
    ],
    key: Annotated[
        str | None, typer.Option(help="of a store: the neighbours of this user, scenario or item")
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(parser=to_path, help="of a store: how much of this data set it knows"),
    ] = None,
) -> None:
    """What a dataset, a knowledge store or a run holds."""
    from msrec.tools.show import show as tell

    tell(folder, key, dataset)


@app.command()
def drift(
    reference: Annotated[
        Path,
        typer.Argument(help="rows of before: a Parquet file or folder: app/train", parser=to_path),
    ],
    current: Annotated[
        Path,
        typer.Argument(help="rows of now: new/test, or a folder of predictions", parser=to_path),
    ],
    fail_above: Annotated[
        float | None, typer.Option(min=0, help="exit status 1 if a column's PSI is above")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="instead of the table")] = False,
) -> None:
    """How far features and scores have moved: the population stability index of each column."""
    from msrec.launch.reporting.drift_table import print_drift

    raise typer.Exit(print_drift(reference, current, fail_above, as_json=json_))


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="run folder, trained with meta networks")],
    user: Annotated[
        list[str] | None, typer.Option(help="a user's raw key; may be repeated")
    ] = None,
    scenario: Annotated[bool, typer.Option("--scenario", help="compare the scenarios")] = False,
    split: Annotated[
        Literal["train", "valid", "test"], typer.Option(help="whose rows are scored")
    ] = "test",
    rows: Annotated[int, typer.Option(min=1, help="rows shown of a user")] = 20,
) -> None:
    """Why a run says what it says: prompt, neighbours, scores without knowledge, layers."""
    from rich.console import Console

    from msrec.tools.explain import explain as tell

    tell(run, user or [], scenario, split, rows, Console())


@app.command()
def zoo(
    model: Annotated[str | None, typer.Argument(help="tell all of this one")] = None,
    page: Annotated[Path | None, typer.Option(help="write docs/zoo.md")] = None,
) -> None:
    """The models: one line, parameters and source of each; formula and options of one."""
    from msrec.tools.zoo import write_page
    from msrec.tools.zoo import zoo as tell

    if page is not None:
        write_page(page)
    else:
        tell(model)


@app.command()
def track(
    run: Annotated[Path, typer.Argument(help="run folder, such as runs/demo")],
    mlflow: Annotated[
        str, typer.Option(help="tracking server, http://host:5000, or sqlite:///mlflow.db")
    ],
    experiment: Annotated[
        str | None, typer.Option(help="MLflow's name for the group [default: the dataset's]")
    ] = None,
) -> None:
    """Bring a run's config, curves and results to MLflow; again: what is new since."""
    from msrec.launch.reporting.mlflow_tracking import track as bring

    typer.echo(bring(run, mlflow, experiment))


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(help="run folders; NAME=FOLDER gives another name on the page")
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write")] = Path("report.html"),
) -> None:
    """One self-contained HTML page over evaluated runs; the first one is the reference."""
    from msrec.tools.cli.jobs import report_job

    report_job(out, runs)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="where data and runs go")] = Path("runs/demo"),
) -> None:
    """Synthetic app, LLM, two ranks: bare against LLM4MSR in one table and one page."""
    from msrec.tools.demo import demo as run

    run(folder)


@app.command()
def torture(
    dataset: Annotated[Path, typer.Argument(help="a dataset folder", parser=local_path)],
    out: Annotated[Path, typer.Option(help="where the runs go; emptied first")] = Path(
        "runs/torture"
    ),
    kills: Annotated[int, typer.Option(min=1, help="of each run")] = 20,
    ranks: Annotated[str, typer.Option(help="numbers of ranks, alone and mixed")] = "1,2,3",
    seed: Annotated[int, typer.Option(help="of the moments")] = 0,
) -> None:
    """Kill training again and again, spoil its files, count the rows lost: docs/reliability.md."""
    from msrec.tools.cli.convert import comma_list
    from msrec.tools.fault_injection.torture import torture as run

    raise typer.Exit(0 if run(dataset, out, kills, comma_list("ranks", ranks, int), seed) else 1)


app.command()(plan)


@app.command()
def doctor() -> None:
    """Check this machine and the torch / fbgemm / torchrec triple, with the mend for each fault."""
    from msrec.tools.doctor import doctor as examine

    raise typer.Exit(examine())


def main() -> None:
    """Run a command; a user's mistake is one sentence on stderr and exit status 2."""
    try:
        app(standalone_mode=True)
    except (ValueError, OSError) as error:
        if is_mistake(error):
            error.__traceback__ = None  # so that the error file of a rank has the sentence alone
        else:
            traceback.print_exc()
        if (told := redacted(str(error))) != str(error):
            error = ValueError(told)
        rank = os.environ.get("RANK")
        print(f"error{f' on rank {rank}' if rank else ''}: {error}", file=sys.stderr)
        _record(error)
        sys.exit(getattr(error, "exit_status", 2))
    except Exception as error:
        _record(error)
        raise


def is_mistake(error: Exception) -> bool:
    """Whether the sentence says all: ours, or the system's (no such file, no space left).

    A plain ValueError from inside a library is more likely a fault of ours, which needs its stack.
    """
    if type(error) is not ValueError:
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return not frames or str(frames[-1].f_globals.get("__name__")).startswith("msrec.")


def _record(error: Exception) -> None:
    """Leave the error where torchrun looks for a rank's error."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        handler = get_error_handler()
        handler.initialize()
        handler.record_exception(error)
