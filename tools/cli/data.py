"""`msrec synthetic`, `msrec histories` and `msrec show`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from msrec.data.io.paths import local_path, to_path
from msrec.tools.cli.arguments import Overwrite


def synthetic(
    out: Annotated[Path, typer.Argument(help="Dataset folder to write.", parser=local_path)],
    rows: Annotated[int, typer.Option(min=1000, help="Number of interactions.")] = 200_000,
    users: Annotated[int, typer.Option(min=10, help="Number of users.")] = 600,
    items: Annotated[int, typer.Option(min=10, help="Number of items.")] = 2_000,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
    cold: Annotated[float, typer.Option(help="Share of users with almost no history.")] = 0.25,
    tables: Annotated[
        Path | None,
        typer.Option(
            help="Write random rows for the embedding tables of this YAML or CSV file, instead of "
            "the simulated app."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a short-video app whose best possible AUC is known."""
    from msrec.tools.convert import make_random, make_synthetic

    if tables is not None:
        make_random(out, tables, rows, users, items, seed, overwrite)
        return
    make_synthetic(
        out, rows=rows, users=users, items=items, seed=seed, cold_fraction=cold, overwrite=overwrite
    )


def histories(
    dataset: Annotated[
        Path, typer.Argument(help="Dataset folder of this machine.", parser=local_path)
    ],
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[stream|frozen]",
            help="Rows that are events. [b]stream[/]: rows of all splits, so that a test row also "
            "sees earlier test rows, as an app that learns of every click at once. [b]frozen[/]: "
            "training rows only, as an app whose histories are from the day of training. May be "
            "repeated (default: both).",
        ),
    ] = None,
    events: Annotated[
        Literal["all", "positive"],
        typer.Option(
            help="[b]all[/] rows are events, or only those whose first label is 1 "
            "([b]positive[/]), such as purchases without sampled negatives."
        ),
    ] = "all",
    order: Annotated[
        Literal["timestamp", "rows"],
        typer.Option(
            help="Order of events: by the [b]timestamp[/] of the dataset, or as the [b]rows[/] are "
            "in its files, train before valid before test. Use [b]rows[/] only if the rows of each "
            "file are in the order in which they happened; with a random split it is refused for "
            "the protocol stream."
        ),
    ] = "timestamp",
    faults: Annotated[
        Literal["fail", "skip"],
        typer.Option(
            help="Treatment of rows that break the schema: stop with an error about the first one, "
            "or leave them out of all histories."
        ),
    ] = "fail",
) -> None:
    """Index the earlier events of every row, for models that read ordered histories.

    A row sees the events of its user with a strictly smaller time. Rows with the same time see
    nothing of each other. The index is written to DATASET/histories/PROTOCOL, about 17 bytes per
    event and 8 bytes per row, and replaces an older one. A run reads it with
    [b]sequence.protocol=stream[/] or [b]sequence.protocol=frozen[/].

    Example: [b]msrec histories data/app --protocol stream --events positive[/]
    """
    from msrec.tools.histories import check_protocols, make_histories

    make_histories(dataset, check_protocols(protocol or ()), events, order, faults)


def show(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Dataset, knowledge store, run or checkpoint; also s3://bucket/app.",
            parser=to_path,
        ),
    ],
    key: Annotated[
        str | None,
        typer.Option(help="For a store: the user, scenario or item whose neighbours are shown."),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            parser=to_path,
            help="For a store: the dataset whose coverage and item titles are shown.",
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="For a store: two item sources; shows the items whose neighbours differ most.",
            metavar="SOURCE SOURCE",
        ),
    ] = None,
    id_counts: Annotated[
        Path | None,
        typer.Option(
            help="For a dataset: JSON file to write with the popularity of each table's ids, for "
            "msrec plan --id-counts.",
        ),
    ] = None,
) -> None:
    """Show the contents of a dataset, a knowledge store, a run or a checkpoint."""
    from msrec.tools.cli.terminal import log_to_terminal
    from msrec.tools.show import show as print_folder

    log_to_terminal()
    print_folder(folder, key, dataset, compare)
    if id_counts is not None:
        from msrec.tools.id_counts import write_id_counts

        write_id_counts(folder, id_counts)
        typer.echo(f"wrote {id_counts}")
