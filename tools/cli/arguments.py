"""Arguments and options that several commands share."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from msrec.data.io.paths import local_path, to_path

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Options of the run that replace those of the file: key.sub=value, such as "
        "[b]backbone.name=mmoe meta.user=true[/]."
    ),
]
Config = Annotated[Path, typer.Argument(help="YAML file of a run; see configs/ for examples.")]
Run = Annotated[Path, typer.Argument(help="Run folder, such as runs/demo.")]
AnyRun = Annotated[
    Path, typer.Argument(help="Run folder, such as runs/demo; also s3://...", parser=to_path)
]
Split = Annotated[
    Literal["train", "valid", "test"], typer.Option(help="Split whose rows are scored.")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Device of the ranks; auto takes a GPU if torch and fbgemm can use one."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier call wrote to the folder.")
]


def take_local_paths(command: Callable[..., Any] | None) -> Callable[..., Any]:
    """Returns a command whose paths are checked by `local_path`, except those with a parser.

    typer would make a `Path` of a URL, which loses a slash and is then taken for a folder.
    """
    assert command is not None, "a command must have a function"
    for parameter in inspect.signature(command).parameters.values():
        arguments: tuple[Any, ...] = get_args(parameter.annotation) or (None,)
        kind, settings = arguments[0], arguments[1:]
        takes_path = kind is Path or Path in get_args(kind) or list[Path] in get_args(kind)
        for each in settings if takes_path else ():
            each.parser = each.parser or local_path
    return command
