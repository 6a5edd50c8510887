"""Latency of an export beside its run's model, where the time goes, and load over HTTP."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from msrec.data.features.columns import Columns
from msrec.data.features.vocabulary import VOCABULARIES
from msrec.data.io.atomic_files import write_json
from msrec.data.io.parquet_files import read_parquet
from msrec.launch.distributed import process_group, quiet_libraries
from msrec.launch.loaders import build_loader
from msrec.launch.serving.knowledge_tables import trained_tables, unwrapped_over
from msrec.launch.serving.request_rows import inputs_of
from msrec.launch.serving.scorer import Scorer
from msrec.launch.trained_run import TrainedRun, open_run, unwrapped
from msrec.model.embeddings import Embeddings
from msrec.model.ranker import Ranker
from msrec.tools.bench.folding import folding_cases

SIZES = (1, 64, 512)
LOADS = ((1, 1), (16, 1), (16, 64), (4, 512), (32, 512))
"""Clients at the same time, and rows of each of their requests."""
QUEUE_ROWS = 4096
START_S = 120
Times = dict[str, list[tuple[float, float]]]
"""Of each case its calls: seconds on the clock, and seconds that this thread computed."""


def bench_serve(
    run_dir: Path,
    export: Path,
    repeats: int,
    seconds: float,
    out: Path,
    console: Console | None = None,
) -> None:
    """Time the run's model and its export in turn, in one process; then a server under load.

    Args:
        run_dir: a run folder.
        export: what `msrec export` made of it.
        repeats: calls of each; every round makes one of each.
        seconds: of each load.
        out: JSON file with all figures.
        console: where to print.
    """
    quiet_libraries()
    torch.set_num_threads(1)
    console = console or Console(width=110)
    scorer, loose = Scorer(export), Scorer(export, compiled=False)
    found: dict[str, Any] = {"export": scorer.manifest.model_dump(mode="json", exclude={"crc32"})}
    with process_group("cpu") as process:
        run = open_run(run_dir, process)
        run.model.eval()
        torch.set_grad_enabled(False)  # until the command ends
        loader = build_loader(run.config, "test", process, run.knowledge, 1, shuffle=False)
        pick = np.random.default_rng(0).integers(loader.reader.num_rows, size=max(SIZES))
        found["direct"] = {}
        for size in SIZES:
            columns = loader.reader.take(pick[:size])
            lines = raw_lines(scorer, columns)
            batch = loader.batch_of(pick[:size])
            times = timed(_cases(run, scorer, loose, batch, columns, lines), repeats)
            found["direct"][size] = {name: _figures(of) for name, of in times.items()}
        body = raw_lines(scorer, loader.reader.take(pick))
        over = unwrapped_over(run)
        if over.user_meta is not None:
            cases = folding_cases(over.user_meta, SIZES)
            found["user layers"] = {
                size: {name: _figures(of) for name, of in timed(cases[size], repeats).items()}
                for size in SIZES
            }
    console.print(_direct_table(found["direct"]))
    if "user layers" in found:
        title = "ms for the layers of each row's user, by what is kept of 100,000 users"
        console.print(_times_table(found["user layers"], title))
    found["load"] = []
    with _server(export) as port:
        for clients, rows in LOADS:
            found["load"].append(_load(port, clients, body[:rows], seconds))
    console.print(_load_table(found["load"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, found)
    console.print(f"wrote {out}")


def _cases(
    run: TrainedRun, scorer: Scorer, loose: Scorer, batch: Any, columns: Columns, lines: list[Any]
) -> dict[str, Callable[[], object]]:
    """What is timed: the whole ways, then the parts of the export's."""
    plain, rows = _plain(run), scorer.maker.rows(columns)
    inputs = inputs_of(rows, len(scorer.raw.schema.sparse))
    dense = scorer.pooled(inputs)
    return {
        "run: TorchRec, eager, float": lambda: run.model(batch),
        "run: nn.EmbeddingBag, eager, float": lambda: plain(batch),
        "export, not compiled": lambda: loose.score(rows),
        "export": lambda: scorer.score(rows),
        "  of it inputs": lambda: inputs_of(rows, len(scorer.raw.schema.sparse)),
        "  of it tables": lambda: scorer.pooled(inputs),
        "  of it program": lambda: scorer.run(dense),
        "before it: rows from JSON to ids": lambda: scorer.maker.rows(
            scorer.raw.encode(scorer.raw.table(lines), "rows")
        ),
    }


def _plain(run: TrainedRun) -> Ranker:
    """The run's model as one writes it for one process."""
    config, inside = run.config, unwrapped(run.model).ranker.embeddings
    tables = run.schema.scaled(config.scale)
    tables = tables.per_scenario() if config.embeddings.per_scenario else tables
    embeddings = Embeddings(tables, inside.dim, inside.history, device="cpu")
    for name, weight in trained_tables(run).items():
        embeddings.ebc.embedding_bags[name].weight.copy_(weight)
    return Ranker(embeddings, unwrapped_over(run)).eval()


def timed(cases: dict[str, Callable[[], object]], repeats: int) -> Times:
    """Times of each call; the cases take turns, after two rounds that do not count."""
    times: Times = {name: [] for name in cases}
    for number in range(repeats + 2):
        for name, case in cases.items():
            started, computed = time.perf_counter(), time.thread_time()
            case()
            if number >= 2:
                spent = time.thread_time() - computed
                times[name].append((time.perf_counter() - started, spent))
    return times


def _figures(calls: Sequence[tuple[float, float]]) -> dict[str, float]:
    clock, computed = zip(*calls, strict=True)
    return _quantiles(clock) | {"cpu_ms": 1e3 * float(np.median(computed))}


def raw_lines(scorer: Scorer, columns: Columns) -> list[dict[str, Any]]:
    """Raw rows that are encoded as the given ones; values that were hashed are made up."""
    schema, folder = scorer.raw.schema, scorer.folder
    raw: dict[str, Any] = {}
    for side in ("user", "item"):
        keys = read_parquet(folder / f"{side}s.parquet", [f"{side}_key"])[f"{side}_key"]
        raw[f"{side}_key"] = keys.take(pa.array(columns[side])).to_pylist()
    raw["scenario"] = [schema.scenarios[number].name for number in columns["scenario"]]
    for feature in schema.sparse:
        path = folder / VOCABULARIES / f"{feature.name}.parquet"
        values: Any = None
        if path.is_file():
            values = [None, *read_parquet(path, ["value"])["value"].to_pylist()]
        elif feature.hashes is not None:
            values = [str(number) for number in range(schema.tables[feature.table])]
        ids = columns[feature.name]
        ids = ids.to_pylist() if feature.multi else ids.tolist()
        raw[feature.name] = ids if values is None else [_decoded(values, of) for of in ids]
    raw |= {name: columns[name].tolist() for name in schema.dense}
    return [dict(zip(raw, row, strict=True)) for row in zip(*raw.values(), strict=True)]


def _decoded(values: list[Any], ids: Any) -> Any:
    return [values[one] for one in ids] if isinstance(ids, list) else values[ids]


@contextmanager
def _server(export: Path) -> Iterator[int]:
    """`msrec serve` in a process of its own, ready to answer."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "msrec", "serve", str(export)]
    options = ["--port", str(port), "--max-queue", str(QUEUE_ROWS)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > until:
                raise ValueError(f"the server of {export} must start; it did not. Run it by hand.")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return _told(port, "/ready").status == 200
    except OSError:
        return False


def _told(port: int, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    return connection.getresponse()


@dataclass
class _Tally:
    """What a client met."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0


def _load(port: int, clients: int, lines: Sequence[Any], seconds: float) -> dict[str, Any]:
    """Clients that each ask again as soon as they are answered."""
    body = json.dumps({"rows": lines})
    tallies = [_Tally() for _ in range(clients)]
    before = _batches(port)
    until = time.perf_counter() + seconds
    threads = [
        threading.Thread(target=_client, args=(port, body, until, tally)) for tally in tallies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls, rows = (now - then for now, then in zip(_batches(port), before, strict=True))
    times = [one for tally in tallies for one in tally.seconds]
    return {
        "clients": clients,
        "rows": len(lines),
        "rows_per_s": len(times) * len(lines) / seconds,
        "requests_per_s": len(times) / seconds,
        "rows_per_call": rows / max(calls, 1),
        "refused": sum(tally.refused for tally in tallies),
        **_quantiles(times),
    }


def _client(port: int, body: str, until: float, tally: _Tally) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while (started := time.perf_counter()) < until:
        connection.request("POST", "/score", body)
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            tally.seconds.append(time.perf_counter() - started)
        else:
            assert answer.status == 503, answer.status
            tally.refused += 1
            time.sleep(0.05)


def _batches(port: int) -> tuple[float, float]:
    """Calls of the program so far, and their rows."""
    text = _told(port, "/metrics").read().decode().splitlines()
    of = dict(line.rsplit(" ", 1) for line in text if not line.startswith("#"))
    return float(of["msrec_batch_rows_count"]), float(of["msrec_batch_rows_sum"])


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.quantile(seconds, (0.5, 0.99)) if len(seconds) else (np.nan, np.nan)
    return {"p50_ms": 1e3 * float(p50), "p99_ms": 1e3 * float(p99)}


def _times_table(times: dict[int, dict[str, dict[str, float]]], title: str) -> Table:
    table = Table(title=title)
    for column in ("", *(f"{size} rows" for size in times)):
        table.add_column(column, justify="right" if column else "left")
    for name in times[SIZES[0]]:
        cells = [
            f"{of[name]['p50_ms']:.2f} ({of[name]['p99_ms']:.2f}) {of[name]['cpu_ms']:.2f}"
            for of in times.values()
        ]
        table.add_row(name, *cells)
    return table


def _direct_table(direct: dict[int, dict[str, dict[str, float]]]) -> Table:
    table = _times_table(direct, "ms a call: median (99 %), and median of computing, one thread")
    for name in ("run: TorchRec, eager, float", "run: nn.EmbeddingBag, eager, float"):
        ratios = [of[name]["cpu_ms"] / of["export"]["cpu_ms"] for of in direct.values()]
        table.add_row(f"export computes less than {name}", *(f"{ratio:.1f} x" for ratio in ratios))
    return table


def _load_table(loads: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="over HTTP on this machine, clients and server on its cores")
    for column in ("clients", "rows each", "rows/s", "rows a call", "ms (99 %)", "refused"):
        table.add_column(column, justify="right")
    for load in loads:
        table.add_row(
            str(load["clients"]),
            str(load["rows"]),
            f"{load['rows_per_s']:,.0f}",
            f"{load['rows_per_call']:.0f}",
            f"{load['p50_ms']:.1f} ({load['p99_ms']:.1f})",
            str(load["refused"]),
        )
    return table
