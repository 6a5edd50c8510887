"""`msrec bench job`: the whole job, from files on disk to metrics."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import typer

from msrec.data.io.parquet_files import num_rows
from msrec.data.schema import load_schema
from msrec.launch.devices import num_local_ranks
from msrec.tools.bench.harness.measure import Aim, Case, Finding, compare_times, interleaved
from msrec.tools.bench.harness.options import Batch, Batches, Dataset, Repeats, comma_list
from msrec.tools.bench.harness.report import prepare, report
from msrec.tools.bench.harness.shapes import dataset_or_random
from msrec.tools.bench.reference.models import MODELS

OPTIONS = ["embeddings.dim=16", "trainer.epochs=1"]
PLAIN_SCRIPT = "msrec.tools.bench.reference.train"
AIM: Aim = ("at most", 0.8)


def bench_job(
    dataset: Dataset = None,
    batch: Batch = 4096,
    batches: Batches = 195,
    repeats: Repeats = 1,
    plain: Annotated[
        str,
        typer.Option(
            help=f"compare training these models with a plain script: {', '.join(MODELS)}"
        ),
    ] = "",
    precision: Annotated[
        Literal["fp32", "bf16"],
        typer.Option(help="with --plain: bf16 is compared with plain scripts in both"),
    ] = "fp32",
) -> None:
    """An epoch of an MMoE from files to metrics on two ranks, against one rank.

    Runs `msrec train --evaluate` as a command, with one thread per rank. With --plain it runs
    `msrec train` of each model, from Parquet to its validation, in turn with a script of plain
    PyTorch that does the same.
    """
    on = prepare()
    with (
        dataset_or_random(dataset, batches, batch) as folder,
        tempfile.TemporaryDirectory() as scratch,
    ):
        jobs = _Jobs(folder, Path(scratch), batch)
        if plain:
            findings, more = jobs.against_plain(comma_list("plain", plain, str), repeats, precision)
        else:
            findings, more = jobs.two_ranks(repeats)
        rows = num_rows(folder / "train")
    report("job", f"an epoch of {rows:,} rows, 16-wide embeddings", findings, on, more)


class _Jobs:
    """Commands on one dataset."""

    def __init__(self, dataset: Path, scratch: Path, batch: int) -> None:
        self._dataset, self._scratch, self._batch = dataset, scratch, batch
        self._name = load_schema(dataset).name
        self._config = scratch / "conf.yaml"
        self._config.write_text(f"dataset: {dataset}\nrun_root: {scratch}\n")
        self._runs: list[Path] = []

    def against_plain(
        self, models: Sequence[str], repeats: int, precision: str
    ) -> tuple[list[Finding], dict[str, Any]]:
        """Returns the times of training each model, ours and the plain script's."""
        findings, seconds = [], {}
        for model in models:
            ours = (f"backbone.name={model}", f"trainer.precision={precision}", "device=cpu")
            cases: dict[str, Case] = {"msrec": partial(self._msrec, 1, "train", *ours)}
            for of_script in sorted({"fp32", precision}, reverse=True):
                words = (self._dataset, model, self._scratch / "model.pt", self._batch, of_script)
                cases[of_script] = partial(_python, "-m", PLAIN_SCRIPT, *map(str, words))
            rounds = seconds[model] = interleaved(cases, repeats, warm_up=0)
            for of_script in list(cases)[1:]:
                findings.append(
                    compare_times(
                        f"{self._name}: {model} in {precision}, Parquet to validation, against a "
                        f"plain script in {of_script}",
                        rounds["msrec"],
                        rounds[of_script],
                        aim=AIM,
                    )
                )
        return findings, {"seconds": seconds}

    def two_ranks(self, repeats: int) -> tuple[list[Finding], dict[str, Any]]:
        """Returns the times of training and evaluating an MMoE on two ranks and on one."""
        # Two ranks and one must run on the same kind of device.
        device = "auto" if num_local_ranks() > 1 else "cpu"
        rows_per_s: dict[str, list[float]] = {"1": [], "2": []}

        def job(ranks: str) -> None:
            options = ("--evaluate", "backbone.name=mmoe", f"device={device}")
            rows_per_s[ranks].append(_rows_per_s(self._msrec(int(ranks), "train", *options)))

        rounds = interleaved({"2": lambda: job("2"), "1": lambda: job("1")}, repeats, warm_up=0)
        what = f"{self._name}: MMoE, disk to test metrics, 2 ranks against 1"
        finding = compare_times(what, rounds["2"], rounds["1"])
        speeds = {ranks: median(s) for ranks, s in rows_per_s.items()}
        return [finding], {"seconds": rounds, "training_rows_per_s": speeds}

    def _msrec(self, ranks: int, command: str, *options: str) -> Path:
        """Runs a command of msrec in a new run folder, which is returned."""
        run = self._scratch / f"run-{len(self._runs)}"
        self._runs.append(run)
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        more = [f"trainer.global_batch={self._batch}", f"run_id={run.name}", *OPTIONS]
        _python(*launcher, "-m", "msrec", command, str(self._config), *options, *more)
        return run


def _python(*words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")


def _rows_per_s(run: Path) -> float:
    """Returns the median speed that the training logged."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds: list[float] = [
        line["metrics"]["rows_per_s"] for line in lines if line["split"] == "train"
    ]
    return median(speeds)
