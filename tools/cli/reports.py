"""`msrec drift`, `explain` and `report`."""

from pathlib import Path
from typing import Annotated

import typer

from msrec.data.io.paths import AnyPath, to_path
from msrec.tools.cli.arguments import Split


def drift(
    reference: Annotated[
        Path,
        typer.Argument(
            help="Earlier rows: a Parquet file, or a folder such as data/app/train.", parser=to_path
        ),
    ],
    current: Annotated[
        Path,
        typer.Argument(
            help="Current rows: data/new/test, or a folder of predictions.", parser=to_path
        ),
    ],
    fail_above: Annotated[
        float | None, typer.Option(min=0, help="Exit with 1 if the PSI of a column is above this.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure how far features and scores have moved: population stability index per column."""
    from msrec.launch.reporting.drift_table import print_drift

    raise typer.Exit(print_drift(reference, current, fail_above, as_json=json_))


def explain(
    run: Annotated[
        Path,
        typer.Argument(
            help="Run folder, trained with meta networks or interest blocks; also s3://...",
            parser=to_path,
        ),
    ],
    user: Annotated[
        list[str] | None, typer.Option(help="Raw key of a user; may be repeated.")
    ] = None,
    scenario: Annotated[
        bool, typer.Option("--scenario", help="Compare the scenarios with each other.")
    ] = False,
    split: Split = "test",
    rows: Annotated[
        int, typer.Option(min=1, help="Number of rows to print per user; all are saved.")
    ] = 20,
    label: Annotated[
        str | None, typer.Option(help="Label whose scores are explained. Default: the first.")
    ] = None,
) -> None:
    """Explain scores: prompt, nearest users, scores without knowledge, attention to earlier items.

    With interest blocks, the rows of the user with the best scores are also explained by the
    history: attention and similarity of each earlier item by source, and the score without each
    source and without history.
    """
    from msrec.launch.checkpointing.remote_runs import changed_run
    from msrec.tools.cli.terminal import console, log_to_terminal
    from msrec.tools.explain import explain as print_explanations

    log_to_terminal()
    with changed_run(run) as folder:
        print_explanations(folder, user or [], scenario, split, rows, console, label)


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, also s3://...; NAME=FOLDER gives a run another name. The first is "
            "the reference."
        ),
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page over evaluated runs."""
    import msrec
    from msrec.tools.cli.terminal import log_to_terminal, say

    log_to_terminal()
    msrec.report(out, dict(map(_named, runs)))
    say(f"wrote {out}")


def _named(run: str) -> tuple[str, AnyPath]:
    name, equals, folder = run.partition("=")
    return (name, to_path(folder)) if equals else (to_path(run).name, to_path(run))
