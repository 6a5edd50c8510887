"""`msrec evaluate`, `compare`, `calibrate` and `predict`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from msrec.data.io.paths import to_path
from msrec.tools.cli.arguments import AnyRun, Device, Split

if TYPE_CHECKING:
    from msrec.launch.evaluation.results import Results

PlacesK = Annotated[int, typer.Option(min=1, help="Number of places of NDCG@k and recall@k.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        help="Another dataset folder to score; ids are matched by value.",
        show_default="the run's own",
    ),
]


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run folder, or a checkpoint in its checkpoints/; also s3://...", parser=to_path
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="The options as key=value, for torchx: split=valid, checkpoint=FOLDER, data=, "
            "by=. Also device=cpu or cuda."
        ),
    ] = None,
    data: DataOption = None,
    split: Split = "test",
    by: Annotated[
        str,
        typer.Option(
            help="Slices of rows, with commas: day, user_history, item_history. Scenarios are "
            "always shown."
        ),
    ] = "",
    k: PlacesK = 10,
    resamples: Annotated[
        int,
        typer.Option(
            min=0, help="Bootstrap resamples of the users for 95 % intervals; 0 computes none."
        ),
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Evaluate new checkpoints during training, until it ends."),
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.1, help="Polling interval of --watch in seconds.")
    ] = 10.0,
) -> None:
    """Score a split with a run's best checkpoint and compute exact metrics with intervals.

    On several ranks: torchx run -s local_cwd msrec.evaluate -j 1x2 -- run=runs/first split=test
    """
    import msrec
    from msrec.launch.cluster.job_specs import EVALUATE_OPTIONS, read_options
    from msrec.tools.cli.terminal import log_to_terminal

    log_to_terminal()
    options = read_options(overrides or [], EVALUATE_OPTIONS)
    if watch:
        if not isinstance(run, Path):
            raise ValueError(
                f"--watch must have the folder in which a run is trained, to see each checkpoint "
                f"before it is deleted; {run} is remote. Evaluate the URL without --watch."
            )
        _watch(run, split, data, every, _device(options))
        return
    results = msrec.evaluate(
        run,
        _split(options.get("split", split)),
        by=[name for name in options.get("by", by).split(",") if name],
        data=options.get("data", data) or None,
        checkpoint=options.get("checkpoint"),
        k=k,
        resamples=resamples,
        seed=seed,
        device=_device(options),
    )
    if results is not None:
        print_results(results)


def print_results(results: "Results") -> None:
    """Prints the tables of an evaluation."""
    from msrec.launch.evaluation.slices import SLICE_TITLES
    from msrec.launch.reporting.result_tables import results_tables, slice_tables
    from msrec.tools.cli.terminal import console

    for table in results_tables(results):
        console.print(table)
    for name in results.slices:
        for table in slice_tables(results, name, SLICE_TITLES[name]):
            console.print(table)


def _split(name: str) -> Split:
    from msrec.data.schema import SPLITS

    if name not in SPLITS:
        raise ValueError(f"split must be train, valid or test; got {name!r}.")
    return name


def _device(options: Mapping[str, str]) -> Device:
    """Returns the device that the options name, or `auto`."""
    from msrec.launch.config.run_config import DEVICES

    name = options.get("device", "auto")
    if name not in DEVICES:
        raise ValueError(f"device must be auto, cpu or cuda; got {name!r}.")
    return name


def _watch(run: Path, split: Split, data: str | None, every_s: float, device: Device) -> None:
    from msrec.launch.distributed import process_group
    from msrec.launch.evaluation.watch import watch
    from msrec.launch.reporting.comparison_tables import shown_metrics
    from msrec.launch.reporting.result_tables import format_value, metric_title
    from msrec.launch.trained_run import load_run_config
    from msrec.tools.cli.terminal import say

    def print_metrics(step: int, results: "Results") -> None:
        k, parts = results.k, []
        for label, of_label in results.by_label.items():
            values = [
                f"{metric_title(name, k)} {format_value(getattr(of_label.metrics.all, name))}"
                for name in shown_metrics(of_label)
            ]
            parts.append(f"{label} " * bool(results.labels) + ", ".join(values))
        say(f"step {step:,}: {split} {'; '.join(parts)}")

    load_run_config(run)
    with process_group(device) as process:
        scored = to_path(data) if data else None
        count = watch(run, process, split, scored, every_s, print_metrics)
    say(f"{run} has ended; {count} checkpoints evaluated")


def compare(
    first: Annotated[
        Path,
        typer.Argument(
            help="Evaluated run, checkpoint or predictions folder: the reference; also s3://...",
            parser=to_path,
        ),
    ],
    second: Annotated[
        Path, typer.Argument(help="Another one that scored the same rows.", parser=to_path)
    ],
    split: Split = "test",
    data: Annotated[
        str | None,
        typer.Option(
            help="Dataset folder on which both were evaluated with --data.",
            show_default="their own",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Metric of the tables and the verdicts: auc, log_loss, ne, rig, "
            "average_precision, gauc, gauc_by_user, ndcg, recall, gauc_by_impression, "
            "ndcg_by_impression; rmse, mae or spearman of a regression label.",
            show_default="auc, of a regression label rmse",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Label to compare the runs in.", show_default="all that have the metric"),
    ] = None,
    k: PlacesK = 10,
    any_protocol: Annotated[
        bool,
        typer.Option(
            "--any-protocol", help="Also compare runs whose histories have different protocols."
        ),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print all metrics as JSON instead of a table.")
    ] = False,
) -> None:
    """Test whether the second run is better: paired differences over users, with a verdict."""
    import msrec
    from msrec.launch.reporting.difference_table import (
        calibration_note,
        combined_table,
        differences_table,
        history_note,
    )
    from msrec.model.metrics.differences import COMPARED
    from msrec.tools.cli.terminal import console, log_to_terminal, say

    log_to_terminal()
    if metric is not None and metric not in COMPARED:
        raise ValueError(f"metric must be one of {', '.join(COMPARED)}; got {metric!r}.")
    comparison = msrec.compare(first, second, split, data=data, k=k, any_protocol=any_protocol)
    if json:
        console.print_json(comparison.model_dump_json())
        return
    by_label = comparison.by_label
    labels = [name for name, metrics in by_label.items() if metric is None or metric in metrics]
    for name in [label] if label is not None else labels or [comparison.label]:
        console.print(differences_table(comparison, metric, name))
        say(msrec.verdict(comparison, metric, name))
    if comparison.combined and label is None:
        console.print(combined_table(comparison))
    for note in filter(None, (history_note(comparison), calibration_note(comparison))):
        say(note)


def calibrate(
    run: AnyRun,
    method: Annotated[
        Literal["isotonic", "platt"],
        typer.Option(help="isotonic: any rising map; platt: logistic, for few rows."),
    ] = "isotonic",
    device: Device = "auto",
) -> None:
    """Fit the predicted probabilities to the validation split, per scenario and label.

    Scores the validation and the test split with the best checkpoint, fits the maps, and writes
    calibration.json in the run folder, which evaluate, predict and export apply from then on.
    Without that file the scores are those of the model again.
    """
    import msrec
    from msrec.launch.reporting.result_tables import calibration_table
    from msrec.tools.cli.terminal import console, log_to_terminal, say

    log_to_terminal()
    calibration = msrec.calibrate(run, method, device=device)
    if calibration is not None:
        console.print(calibration_table(calibration))
        say(f"wrote {run / 'calibration.json'}; `msrec evaluate {run}` computes the new results")


def predict(
    run: AnyRun,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="The options as key=value, for torchx: data=A,B out=DIR columns=A,B "
            "checkpoint=FOLDER dataset=FOLDER device=cpu."
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Parquet file or folder to score, also s3://...; may be repeated. Raw values, or "
            "ids as in the run's dataset; labels are not needed.",
            parser=to_path,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write, also s3://...", parser=to_path)
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Columns to keep in addition to the score, with commas.",
            show_default="user,item,scenario",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Dataset folder whose ids the files have; ids are matched by value.",
            show_default="the run's own",
        ),
    ] = None,
) -> None:
    """Score the rows of Parquet files: as many rows out as in, in order; resumes after a kill.

    On several ranks: msrec launch predict runs/demo data=new out=scores -j 1x2
    """
    import msrec
    from msrec.launch.cluster.job_specs import PREDICT_OPTIONS, read_options
    from msrec.tools.cli.terminal import log_to_terminal, say

    log_to_terminal()
    options = read_options(overrides or [], PREDICT_OPTIONS)
    files = [*map(str, data or []), *filter(None, options.get("data", "").split(","))]
    target = options.get("out", out)
    if not files or target is None:
        raise ValueError("msrec predict needs data=FILES, the Parquet files to score, and out=DIR.")
    names = options.get("columns", columns)
    summary = msrec.predict(
        run,
        files,
        str(target),
        columns=None if names is None else [name for name in names.split(",") if name],
        checkpoint=options.get("checkpoint"),
        dataset=options.get("dataset", dataset),
        device=_device(options),
    )
    if summary is not None:
        say(summary.sentence(to_path(str(target))))
