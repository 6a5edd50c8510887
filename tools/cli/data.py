"""`msrec synthetic` and `msrec show`."""

from pathlib import Path
from typing import Annotated

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


def show(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Dataset (also s3://bucket/app), knowledge store, run or checkpoint.",
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
) -> None:
    """Show the contents of a dataset, a knowledge store, a run or a checkpoint."""
    from msrec.tools.show import show as print_folder

    print_folder(folder, key, dataset, compare)
