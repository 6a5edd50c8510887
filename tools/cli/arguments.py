"""Arguments that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key.sub=value, such as [b]backbone.name=mmoe meta.user=true[/]"),
]
Config = Annotated[Path, typer.Argument(help="YAML file, see configs/")]
