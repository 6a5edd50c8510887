"""Command-line options that several benches share."""

from pathlib import Path
from typing import Annotated

import typer

from msrec.data.io.paths import local_path

Dataset = Annotated[
    Path | None,
    typer.Option(
        parser=local_path,
        help="dataset folder to measure",
        show_default="random rows in the shape of MovieLens-1M",
    ),
]
Batch = Annotated[int, typer.Option(min=16, help="rows of a step")]
Batches = Annotated[int, typer.Option(min=2, help="batches of random rows to make")]
Steps = Annotated[int, typer.Option(min=1, help="steps of a round")]
Repeats = Annotated[int, typer.Option(min=1, help="rounds, of which the median counts")]
