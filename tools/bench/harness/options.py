"""Command-line options that several benches share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

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


def comma_list(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Returns the values between commas.

    Raises:
        ValueError: a value is not of the kind.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    try:
        return [kind(word) for word in words]
    except ValueError:
        raise ValueError(f"--{name} must be numbers separated by commas; got {text!r}.") from None
