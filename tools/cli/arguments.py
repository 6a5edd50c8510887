"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Options of the run that replace those of the file: key.sub=value, such as "
        "[b]backbone.name=mmoe meta.user=true[/]."
    ),
]
Config = Annotated[Path, typer.Argument(help="YAML file of a run; see configs/ for examples.")]
Run = Annotated[Path, typer.Argument(help="Run folder, such as runs/demo.")]
Split = Annotated[
    Literal["train", "valid", "test"], typer.Option(help="Split whose rows are scored.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier call wrote to the folder.")
]
