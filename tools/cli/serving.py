"""`msrec export`, `msrec score` and `msrec serve`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from msrec.data.io.local_copies import local_copy
from msrec.data.io.paths import to_path
from msrec.tools.cli.arguments import AnyRun, Overwrite, Split

Export = Annotated[
    Path, typer.Argument(help="Folder that `msrec export` wrote; also s3://...", parser=to_path)
]


def export(
    run: AnyRun,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write; also s3://...", show_default="RUN/export", parser=to_path
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint to export.", show_default="the best validation's", parser=to_path
        ),
    ] = None,
    split: Split = "test",
    tables: Annotated[
        Literal["int8", "float16"], typer.Option(help="Precision of the embedding tables.")
    ] = "int8",
    dense: Annotated[
        Literal["float32", "bfloat16", "int8"],
        typer.Option(
            help="Precision of the larger matrix products; bfloat16 and int8 are for CPUs that "
            "have instructions for it (avx512_bf16, avx512_vnni)."
        ),
    ] = "float32",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="Compile the program by AOTInductor; needs g++."
        ),
    ] = True,
    since: Annotated[
        Path | None,
        typer.Option(
            help="Earlier export that servers have. What changed since then is also written, to "
            "the folder OUT-delta, which [b]msrec apply[/] takes.",
            parser=to_path,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a folder that serves a run: int8 tables and a program, checked against the run.

    The rows of --split are scored by both, and the differences are printed.
    """
    from msrec.launch.distributed import process_group
    from msrec.launch.serving.delta.make import check_delta, write_delta
    from msrec.launch.serving.export import export as export_run
    from msrec.launch.serving.export_folder import MANIFEST_FILE
    from msrec.tools.cli.terminal import log_to_terminal, say

    log_to_terminal()
    folder = out or run / "export"
    delta_folder = folder.with_name(f"{folder.name}-delta")
    if since is not None:
        since = local_copy(since, MANIFEST_FILE)
        check_delta(since, folder, delta_folder, overwrite=overwrite)
    options = {"compiled": compiled, "overwrite": overwrite}
    with process_group("cpu") as process:
        made = export_run(run, folder, process, checkpoint, split, tables, dense, **options)
    parity = made.parity
    assert parity is not None
    for label, (of_run, of_export) in parity.auc.items():
        name = f"AUC of {label}" if len(made.labels) > 1 else "AUC"
        say(
            f"{name}, {parity.rows:,} {split} rows: run {of_run:.6f}, export {of_export:.6f} "
            f"({of_export - of_run:+.6f})"
        )
    say(
        f"scores differ by at most {parity.largest_difference:.2g}, {parity.mean_difference:.2g} "
        "on average"
    )
    sequence = made.sequence
    if sequence is not None:
        vector_bytes = sum(table.num_bytes for table in sequence.tables)
        say(
            f"ordered histories: {sequence.tables[0].rows:,} items in "
            f"{', '.join(table.name for table in sequence.tables)} "
            f"({vector_bytes / 2**20:,.2f} MiB), {sequence.num_events:,} events of users, at most "
            f"{sequence.max_len} each ({sequence.history_bytes / 2**20:,.2f} MiB)"
        )
    say(f"wrote {folder}")
    if since is not None:
        new = local_copy(folder, MANIFEST_FILE)
        delta = write_delta(since, new, delta_folder, overwrite=overwrite)
        for name, part in delta.parts.items():
            if part.kind != "whole":
                say(f"  {name}: {part.changed:,} changed, {part.new:,} new")
        say(
            f"wrote {delta_folder}: {delta.num_bytes / 2**20:,.2f} MiB, "
            f"{delta.num_bytes / delta.export_bytes:.1%} of the export; from {delta.base} to "
            f"{delta.result}"
        )


def apply(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="EXPORT", help="Export, also s3://..., or a link to it.", parser=to_path
        ),
    ],
    delta: Annotated[
        Path,
        typer.Argument(
            help="Folder that `msrec export --since` wrote; also s3://...", parser=to_path
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the new export; also s3://...", parser=to_path)
    ],
    swap: Annotated[
        bool,
        typer.Option(
            "--swap",
            help="Then point the link EXPORT to the new export; servers of that link swap to it.",
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Make a new export of an older one and a delta: bit for bit the one that was exported.

    A damaged delta, or one that was made against another export, is refused and changes nothing.
    """
    from msrec.launch.serving.delta.apply import apply_delta, point_link, require_link
    from msrec.launch.serving.delta.delta_folder import DELTA_FILE
    from msrec.launch.serving.export_folder import MANIFEST_FILE
    from msrec.tools.cli.terminal import log_to_terminal, say

    log_to_terminal()
    if swap:
        if not isinstance(out, Path):
            raise ValueError(f"--swap must have a folder of this machine as --out; got {out}.")
        require_link(base)
    new = local_copy(delta, DELTA_FILE)
    made = apply_delta(local_copy(base, MANIFEST_FILE), new, out, overwrite=overwrite)
    say(f"wrote {out}: version {made.result}, from {made.base}")
    if swap:
        point_link(base, out)
        say(f"{base} points to {out}")


def score(
    folder: Export,
    file: Annotated[Path, typer.Argument(help="Raw rows, .parquet or .jsonl.")],
    out: Annotated[Path, typer.Option(help="File to write, .parquet or .jsonl.")],
) -> None:
    """Score a file of raw rows with an export: as many rows out as in, in order."""
    from msrec.data.features.value_counts import count_sentences
    from msrec.launch.serving.export_folder import MANIFEST_FILE
    from msrec.launch.serving.score_file import score_file
    from msrec.launch.serving.scorer import Scorer
    from msrec.tools.cli.terminal import log_to_terminal, say

    log_to_terminal()
    scorer = Scorer(local_copy(folder, MANIFEST_FILE))
    rows = score_file(scorer, file, out)
    say(f"wrote {out}: {rows:,} rows")
    for line in count_sentences(scorer.encoder.counts.take()):
        say(f"  {line}")


def serve(
    folder: Export,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Most rows that are scored by one call.")
    ] = 512,
    max_wait_ms: Annotated[
        float,
        typer.Option(min=0, help="Longest time in ms that a request waits for others to join."),
    ] = 1,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Most rows that wait; more are refused with status 503.")
    ] = 8192,
    max_body_mib: Annotated[
        int, typer.Option(min=1, help="Size in MiB of the largest request.")
    ] = 4,
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Processes that serve, each with the export in memory and its own queue."
        ),
    ] = 1,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of the program in each process.")
    ] = 1,
    drain_s: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds after SIGTERM in which load balancers can turn away from us."
        ),
    ] = 2,
) -> None:
    """Serve an export over HTTP: /score, /health, /ready, /metrics. Needs the extra `serve`.

    If the folder is a link, the server swaps to another export when the link is pointed to it,
    without a failed request. It then needs memory for both.
    """
    from msrec.launch.serving.export_folder import MANIFEST_FILE
    from msrec.launch.serving.scorer import Scorer
    from msrec.tools.cli.terminal import log_to_terminal

    def announce(scorer: Scorer) -> None:
        how = "compiled" if scorer.is_compiled else "not compiled"
        typer.echo(f"serving {folder} ({how}) on http://{host}:{port}")

    try:
        from msrec.launch.serving.http.batcher import Limits
        from msrec.launch.serving.http.serve import ServerOptions
        from msrec.launch.serving.http.serve import serve as run
    except ModuleNotFoundError as error:
        raise ValueError(
            f"msrec serve needs the package {error.name}, which is not installed. Run: "
            "pip install '.[serve]' (in a checkout)"
        ) from None
    log_to_terminal()
    run(
        local_copy(folder, MANIFEST_FILE),
        ServerOptions(host, port, workers, threads, drain_s),
        Limits(max_batch, max_wait_ms, max_queue, max_body_mib),
        announce,
    )
