"""`msrec export`, `msrec score` and `msrec serve`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Export = Annotated[Path, typer.Argument(help="folder that `msrec export` made")]


def export(
    run: Annotated[Path, typer.Argument(help="run folder, such as runs/demo")],
    out: Annotated[Path | None, typer.Option(help="folder to make [default: RUN/export]")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="whose weights [default: the best validation's]")
    ] = None,
    split: Annotated[
        Literal["train", "valid", "test"], typer.Option(help="rows to compare with the run on")
    ] = "test",
    tables: Annotated[Literal["int8", "float16"], typer.Option(help="rows of the tables")] = "int8",
    dense: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="matrix products over the tables; bfloat16 for CPUs that have it"),
    ] = "float32",
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="by AOTInductor, where there is g++")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
) -> None:
    """A folder that serves a run: int8 tables, an exported program, checked against the run."""
    from msrec.tools.cli.jobs import export_job

    where = (run, out or run / "export", checkpoint, split)
    export_job(*where, tables, dense, compiled=compiled, overwrite=overwrite)


def score(
    folder: Export,
    file: Annotated[Path, typer.Argument(help="raw rows, .parquet or .jsonl")],
    out: Annotated[Path, typer.Option(help="file to write, .parquet or .jsonl")],
) -> None:
    """Score a file of raw rows with an export; rows in = rows out."""
    from msrec.launch.serving.score_file import score_file
    from msrec.launch.serving.scorer import Scorer

    rows = score_file(Scorer(folder), file, out)
    typer.echo(f"wrote {out}: {rows:,} rows")


def serve(
    folder: Export,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    max_batch: Annotated[int, typer.Option(min=1, help="rows that wait for no others")] = 512,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="the first request's, for others")] = 1,
    max_queue: Annotated[int, typer.Option(min=1, help="rows that may wait; then 503")] = 8192,
    threads: Annotated[int, typer.Option(min=1, help="of the program")] = 1,
    drain_s: Annotated[
        float, typer.Option(min=0, help="after SIGTERM, seconds for balancers to turn away")
    ] = 2,
) -> None:
    """Serve an export over HTTP: /score, /health, /ready, /metrics; needs the extra `serve`."""
    from msrec.launch.serving.scorer import Scorer

    try:
        from msrec.launch.serving.server import Limits
        from msrec.launch.serving.server import serve as run
    except ModuleNotFoundError as error:
        raise ValueError(
            f"msrec serve needs the package {error.name}, which is not installed. Run: "
            "pip install '.[serve]' (in a checkout)"
        ) from None
    scorer = Scorer(folder)
    how = "compiled" if scorer.is_compiled else "not compiled"
    typer.echo(f"serving {folder} ({how}) on http://{host}:{port}")
    run(scorer, host, port, Limits(max_batch, max_wait_ms, max_queue), threads, drain_s)
