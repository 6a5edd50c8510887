"""The whole job: one epoch from files on disk to metrics, on one rank and on two."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console

from msrec.data.io.parquet_files import num_rows
from msrec.data.schema import load_schema
from msrec.tools.bench.harness.measure import Finding, interleaved, rates, sizes
from msrec.tools.bench.harness.own_process import in_own_process
from msrec.tools.bench.harness.report import machine, report
from msrec.tools.bench.loader import dataset_or_made
from msrec.tools.bench.public import LIBRARY, has_rechub, rechub_rows_per_s

OPTIONS = ["backbone.name=mmoe", "embeddings.dim=16", "trainer.epochs=1"]
PUBLIC_BATCHES = 50
"""Steps of the public library, which takes long."""


def bench_job(dataset: Path | None, batch: int, batches: int, repeats: int) -> None:
    """`msrec train` of an MMoE for one epoch, then `msrec evaluate`, as a person runs them.

    Beside training alone by a public library, where that is installed.

    Args:
        dataset: a folder; None makes random rows.
        batch: rows of a global batch.
        batches: of the rows that are made.
        repeats: rounds.
    """
    on = machine()
    with (
        dataset_or_made(dataset, batches, batch) as folder,
        tempfile.TemporaryDirectory() as scratch,
    ):
        name, rows = load_schema(folder).name, num_rows(folder / "train")
        inside: dict[int, list[float]] = {1: [], 2: []}
        runs = iter(range(1_000_000))

        def job(ranks: int) -> None:
            run = Path(scratch) / f"r{next(runs)}"
            config = Path(scratch) / "conf.yaml"
            config.write_text(f"dataset: {folder}\nrun_root: {scratch}\n")
            options = [*OPTIONS, f"trainer.global_batch={batch}", f"run_id={run.name}"]
            _msrec(ranks, "train", str(config), *options)
            _msrec(ranks, "evaluate", str(run))
            inside[ranks].append(_rows_per_s(run))

        cases = {ranks: (lambda ranks=ranks: job(ranks)) for ranks in (1, 2)}
        took = interleaved({f"{n}": case for n, case in cases.items()}, repeats, warm_up=0)
        public = []
        if has_rechub():
            given = (folder, OPTIONS, batch, PUBLIC_BATCHES)
            public = [in_own_process(rechub_rows_per_s, *given) for _ in range(repeats)]
    findings: list[Finding] = [
        sizes(
            f"{name}: training alone, {ranks} rank{'s' * (ranks > 1)}, against {LIBRARY}",
            median(inside[ranks]),
            median(public),
            "rows/s",
        )
        for ranks in (1, 2)
        if public
    ]
    findings.append(
        rates(f"{name}: disk to metrics, 2 ranks against 1", took["2"], took["1"], rows)
    )
    seconds = {ranks: [clock for clock, _ in took[str(ranks)]] for ranks in (1, 2)}
    title = f"MMoE, 16-wide embeddings, {rows:,} rows, train and evaluate: " + ", ".join(
        f"{median(s):.1f} s on {r} rank{'s' * (r > 1)}" for r, s in seconds.items()
    )
    inside_median = {ranks: median(speeds) for ranks, speeds in inside.items()}
    more = {"seconds": seconds, "rows": rows, "training_rows_per_s": inside_median}
    report("job", title, findings, on, more)
    if not public:
        Console().print(f"pip install {LIBRARY} to see training beside it.", highlight=False)


def _msrec(ranks: int, *command: str) -> None:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    words = [sys.executable, *launcher, "-m", "msrec", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")


def _rows_per_s(run: Path) -> float:
    """Of the training's own log lines."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds: list[float] = [
        line["metrics"]["rows_per_s"] for line in lines if line["split"] == "train"
    ]
    return median(speeds)
