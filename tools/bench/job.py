"""`msrec bench job`: the whole job, from files on disk to metrics, on one rank and on two."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from msrec.data.io.parquet_files import num_rows
from msrec.data.schema import load_schema
from msrec.launch.devices import num_local_ranks
from msrec.tools.bench.harness.measure import compare_rates, interleaved
from msrec.tools.bench.harness.options import Batch, Batches, Dataset, Repeats
from msrec.tools.bench.harness.report import prepare, report
from msrec.tools.bench.harness.shapes import dataset_or_random

OPTIONS = ["backbone.name=mmoe", "embeddings.dim=16", "trainer.epochs=1"]


def bench_job(
    dataset: Dataset = None, batch: Batch = 4096, batches: Batches = 195, repeats: Repeats = 1
) -> None:
    """An epoch of an MMoE from files to metrics on two ranks, against one rank.

    Runs `msrec train` and `msrec evaluate` as commands, with one thread per rank.
    """
    on = prepare()
    # Two ranks and one must run on the same kind of device.
    device = "auto" if num_local_ranks() > 1 else "cpu"
    with (
        dataset_or_random(dataset, batches, batch) as folder,
        tempfile.TemporaryDirectory() as scratch,
    ):
        name, rows = load_schema(folder).name, num_rows(folder / "train")
        config = Path(scratch) / "conf.yaml"
        config.write_text(f"dataset: {folder}\nrun_root: {scratch}\n")
        training_rows_per_s: dict[int, list[float]] = {1: [], 2: []}

        def job(ranks: int) -> None:
            run = Path(scratch) / f"{ranks}-ranks-{len(training_rows_per_s[ranks])}"
            options = [*OPTIONS, f"trainer.global_batch={batch}", f"run_id={run.name}"]
            _msrec(ranks, "train", str(config), *options, f"device={device}")
            _msrec(ranks, "evaluate", str(run), f"device={device}")
            training_rows_per_s[ranks].append(_rows_per_s(run))

        cases = {"1": lambda: job(1), "2": lambda: job(2)}
        rounds = interleaved(cases, repeats, warm_up=0)
    seconds = {ranks: [time.clock for time in times] for ranks, times in rounds.items()}
    finding = compare_rates(
        f"{name}: disk to metrics, 2 ranks against 1", rounds["2"], rounds["1"], rows
    )
    title = (
        f"MMoE, 16-wide embeddings, {rows:,} rows, train and evaluate: "
        f"{median(seconds['1']):.1f} s on 1 rank, {median(seconds['2']):.1f} s on 2 ranks"
    )
    more = {
        "seconds": seconds,
        "rows": rows,
        "training_rows_per_s": {ranks: median(s) for ranks, s in training_rows_per_s.items()},
    }
    report("job", title, [finding], on, more)


def _msrec(ranks: int, *command: str) -> None:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    words = [sys.executable, *launcher, "-m", "msrec", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")


def _rows_per_s(run: Path) -> float:
    """Returns the median speed that the training logged."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds: list[float] = [
        line["metrics"]["rows_per_s"] for line in lines if line["split"] == "train"
    ]
    return median(speeds)
