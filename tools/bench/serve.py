"""`msrec bench serve`: latency of an export, against its run, and a server under load."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer

from msrec.data.features.columns import Columns
from msrec.data.features.vocabulary import vocabulary_file
from msrec.data.io.outputs import check_output
from msrec.data.io.parquet_files import read_parquet
from msrec.data.loading.batch import Batch
from msrec.launch.build_model import table_schema
from msrec.launch.distributed import process_group
from msrec.launch.loaders import build_loader
from msrec.launch.serving.scorer import Scorer
from msrec.launch.serving.serving_tables import trained_tables, unwrapped_dense_arch
from msrec.launch.trained_run import TrainedRun, open_run, unwrapped
from msrec.model.embeddings import Embeddings
from msrec.model.ranker import Ranker
from msrec.tools.bench.harness.http_load import apply_load, latency_quantiles, running_server
from msrec.tools.bench.harness.measure import Case, Seconds, compare_times, interleaved
from msrec.tools.bench.harness.report import BENCH_FILE, console, prepare, report, text_table

SIZES = (1, 64, 512)
"""Rows of a call."""
LOADS = ((1, 1), (16, 1), (16, 64), (1, 512), (4, 512), (16, 512), (64, 512))
"""Concurrent clients, and rows of each of their requests."""
WARM_UP_CALLS = 2
TORCHREC, PLAIN = "run: TorchRec, eager, float", "run: nn.EmbeddingBag, eager, float"
EXPORT = "export"


def bench_serve(
    run: Annotated[Path, typer.Argument(help="run folder")],
    export: Annotated[
        Path | None,
        typer.Option(help="folder that `msrec export` made", show_default="RUN/export"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=3, help="calls of each case and size")] = 200,
    seconds: Annotated[float, typer.Option(min=0.1, help="seconds of each load over HTTP")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="processes of the server")] = 1,
    out: Annotated[Path, typer.Option(help="JSON file to write")] = Path("runs/serve.json"),
) -> None:
    """Latency of an export, against its run; then a server under load.

    The direct calls take turns in one process with one thread. The loads go over HTTP to a server
    on the same machine.
    """
    check_output(out, BENCH_FILE)
    on = prepare()
    export = export or run / "export"
    scorer = Scorer(export)
    rounds, lines = _direct_calls(run, scorer, repeats)
    direct = {
        size: {name: _figures(calls) for name, calls in of_size.items()}
        for size, of_size in rounds.items()
    }
    title = "ms of a call: median (99th percentile), and median of CPU time"
    console.print(text_table(title, _direct_rows(direct)))
    with running_server(export, "--workers", str(workers)) as port:
        load = [apply_load(port, clients, lines[:rows], seconds) for clients, rows in LOADS]
    title = f"over HTTP, {workers} worker(s); clients and server share this machine"
    console.print(text_table(title, [_load_row(figures) for figures in load]))
    findings = [
        compare_times(f"{size} rows: export, against {name}", of_size[EXPORT], of_size[name])
        for size, of_size in rounds.items()
        for name in (TORCHREC, PLAIN)
    ]
    manifest = scorer.manifest.model_dump(mode="json", exclude={"crc32"})
    more = {"export": manifest, "direct": direct, "workers": workers, "load": load}
    report("serve", f"one call of {export}, one thread", findings, on, more, file=out)


def _direct_calls(
    run_dir: Path, scorer: Scorer, repeats: int
) -> tuple[dict[int, dict[str, list[Seconds]]], list[dict[str, Any]]]:
    """Returns the times of all cases for each size, and raw rows for requests."""
    uncompiled = Scorer(scorer.folder, compiled=False)
    with process_group("cpu") as process:
        run = open_run(run_dir, process)
        run.model.eval()
        loader = build_loader(run.config, "test", process, run.knowledge, 1, shuffle=False)
        pick = np.random.default_rng(0).integers(loader.reader.num_rows, size=max(SIZES))
        rounds = {}
        with torch.no_grad():
            for size in SIZES:
                batch, columns = loader.batch_of(pick[:size]), loader.reader.take(pick[:size])
                cases = _cases(run, scorer, uncompiled, batch, columns)
                rounds[size] = interleaved(cases, repeats, WARM_UP_CALLS)
        return rounds, raw_lines(scorer, loader.reader.take(pick))


def _cases(
    run: TrainedRun, scorer: Scorer, uncompiled: Scorer, batch: Batch, columns: Columns
) -> dict[str, Case]:
    """The models as a whole, then the parts of the export."""
    plain, lines = _plain_model(run), raw_lines(scorer, columns)
    rows = scorer.encoder.encode(columns)
    tensors = scorer.tensors(rows)
    inputs = scorer.look_up(tensors)
    return {
        TORCHREC: lambda: run.model(batch),
        PLAIN: lambda: plain(batch),
        "export, not compiled": lambda: uncompiled.score(rows),
        EXPORT: lambda: scorer.score(rows),
        "  of it inputs": lambda: scorer.tensors(rows),
        "  of it tables": lambda: scorer.look_up(tensors),
        "  of it program": lambda: scorer.run_program(inputs),
        "before it: rows from JSON to ids": lambda: scorer.encoder.encode_json(lines, "rows"),
    }


def _plain_model(run: TrainedRun) -> Ranker:
    """Returns the run's model without TorchRec's sharding, for one process."""
    config, ranker = run.config, unwrapped(run.model).ranker
    trained = ranker.embeddings
    embeddings = Embeddings(
        table_schema(config, run.schema), trained.dim, trained.history, device="cpu"
    )
    embeddings.managed = trained.managed
    for name, weight in trained_tables(run).items():
        embeddings.ebc.embedding_bags[name].weight.copy_(weight)
    parts = (unwrapped_dense_arch(run), ranker.items, ranker.sequence_items)
    return Ranker(embeddings, *parts).eval()


def raw_lines(scorer: Scorer, columns: Columns) -> list[dict[str, Any]]:
    """Returns raw rows that the export encodes as the given ones; hashed values are made up."""
    schema, folder = scorer.encoder.row_encoder.schema, scorer.folder
    raw: dict[str, Any] = {}
    for side in ("user", "item"):
        keys = read_parquet(folder / f"{side}s.parquet", [f"{side}_key"])[f"{side}_key"]
        raw[f"{side}_key"] = keys.take(pa.array(columns[side])).to_pylist()
    raw["scenario"] = [schema.scenarios[number].name for number in columns["scenario"]]
    for feature in schema.sparse:
        path = vocabulary_file(folder, feature.name)
        values: list[Any] | None = None
        if path.is_file():
            values = [None, *read_parquet(path, ["value"])["value"].to_pylist()]
        elif feature.hashes is not None:
            values = [str(number) for number in range(schema.tables[feature.table])]
        ids = columns[feature.name]
        ids = ids.to_pylist() if feature.multi else ids.tolist()
        raw[feature.name] = ids if values is None else [_decoded(values, one) for one in ids]
    raw |= {name: columns[name].tolist() for name in schema.dense}
    return [dict(zip(raw, row, strict=True)) for row in zip(*raw.values(), strict=True)]


def _decoded(values: list[Any], ids: Any) -> Any:
    return [values[one] for one in ids] if isinstance(ids, list) else values[ids]


def _figures(calls: list[Seconds]) -> dict[str, float]:
    cpu_ms = 1e3 * float(np.median([call.processor for call in calls]))
    return latency_quantiles([call.clock for call in calls]) | {"cpu_ms": cpu_ms}


def _direct_rows(direct: dict[int, dict[str, dict[str, float]]]) -> list[dict[str, str]]:
    def cell(figures: dict[str, float]) -> str:
        return "{p50_ms:.2f} ({p99_ms:.2f}) {cpu_ms:.2f}".format(**figures)

    return [
        {"": name} | {f"{size} rows": cell(direct[size][name]) for size in direct}
        for name in direct[SIZES[0]]
    ]


def _load_row(load: dict[str, Any]) -> dict[str, str]:
    return {
        "clients": str(load["clients"]),
        "rows each": str(load["rows"]),
        "rows/s": f"{load['rows_per_s']:,.0f}",
        "rows a call": f"{load['rows_per_call']:.0f}",
        "ms (99 %)": "{p50_ms:.1f} ({p99_ms:.1f})".format(**load),
        "refused": str(load["refused"]),
    }
