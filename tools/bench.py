"""The MovieLens-1M table: each backbone bare and with LLM4MSR, beside published figures."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from rich.console import Console

from msrec.launch.results import Results, load_results
from msrec.tools.convert import convert
from msrec.tools.published import MOVIELENS, spread

CONFIGS = Path("configs/movielens")
BACKBONES = ("shared_bottom", "mmoe", "star")
VARIANTS: dict[str, list[str]] = {
    "bare": ["meta.user=false", "meta.scenario=false"],
    "LLM4MSR": ["meta.user=true", "meta.scenario=true"],
}


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    backbone: str
    variant: str
    seed: int

    @property
    def run_id(self) -> str:
        """Folder of the run."""
        return f"{self.backbone}-{self.variant.lower()}-{self.seed}"


def bench_movielens(raw: Path, out: Path, seeds: int, jobs: int) -> None:
    """Convert, encode, run every cell that has no results yet, and print the table.

    Args:
        raw: folder with ratings.dat, users.dat, movies.dat, or with interactions / items / users
            Parquet.
        out: gets `data/`, `store/`, a run folder per cell, and `table.md`.
        seeds: runs per backbone and variant; the split stays the same.
        jobs: cells that run at the same time, one thread each.

    Raises:
        FileNotFoundError: `raw` holds neither, or the command was not started from a checkout.
        ValueError: a step failed.
    """
    console = Console()
    if not CONFIGS.is_dir():
        raise FileNotFoundError(f"{CONFIGS} must exist: run this from the root of a checkout.")
    if not (out / "data" / "dataset.yaml").is_file():
        _convert(raw, out / "data", console)
    places = [f"dataset={out}/data", f"run_root={out}", f"llm.store={out}/store"]
    run_msrec("encode", CONFIGS / "shared_bottom.yaml", *places)
    cells = [Cell(b, v, s) for s in range(seeds) for b in BACKBONES for v in VARIANTS]
    left = [cell for cell in cells if not (out / cell.run_id / "results.json").is_file()]
    console.print(f"{len(cells) - len(left)} of {len(cells)} cells are done already")
    with ThreadPoolExecutor(jobs) as pool:
        for cell, seconds in pool.map(lambda cell: (cell, _run(cell, out, places)), left):
            auc = load_results(out / cell.run_id).metrics.all.auc
            console.print(f"{cell.run_id}: test AUC {auc:.4f} in {seconds:.0f} s")
    table = "\n".join(_table(out, seeds)) + "\n"
    (out / "table.md").write_text(table)
    console.print(table, markup=False, highlight=False, soft_wrap=True)


def _convert(raw: Path, out: Path, console: Console) -> None:
    if (raw / "ratings.dat").is_file():
        convert("movielens", raw, out, console=console)
    elif (raw / "interactions.parquet").is_file():
        convert("tables", raw, out, mapping=CONFIGS / "tables.yaml", console=console)
    else:
        raise FileNotFoundError(
            f"{raw} must hold ratings.dat, users.dat, movies.dat or interactions.parquet, "
            "items.parquet, users.parquet; it holds neither."
        )


def _run(cell: Cell, out: Path, places: Sequence[str]) -> float:
    """Train and evaluate one cell in processes of its own; seconds."""
    started = time.monotonic()
    options = [f"run_id={cell.run_id}", f"seed={cell.seed}", *VARIANTS[cell.variant]]
    run_msrec("train", CONFIGS / f"{cell.backbone}.yaml", *places, *options)
    run_msrec("evaluate", out / cell.run_id)
    return time.monotonic() - started


def run_msrec(*args: object) -> None:
    """Run a command in a process of its own.

    Raises:
        ValueError: it failed; with the last line it said.
    """
    command = [sys.executable, "-m", "msrec.tools", *map(str, args)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing was said"]
        raise ValueError(f"`msrec {' '.join(command[3:5])} ...` failed: {said[-1]}")


def _table(out: Path, seeds: int) -> Iterator[str]:
    """Markdown: mean and standard deviation over seeds."""
    first = load_results(out / Cell(BACKBONES[0], "bare", 0).run_id)
    scenarios = list(first.metrics.scenarios)
    aucs = ["AUC", *(f"AUC {name}" for name in scenarios)]
    losses = ["log loss", *(f"log loss {name}" for name in scenarios)]
    head = ["model", *aucs, *losses, "rows/s", "epochs"]
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for backbone in BACKBONES:
        published = [f"{value:.4f}" for value in MOVIELENS[backbone]]
        published += ["" for _ in [*scenarios, "rows/s", "epochs"]]
        yield f"| {backbone}, published | {' | '.join(published)} |"
        for variant in VARIANTS:
            folders = [out / Cell(backbone, variant, seed).run_id for seed in range(seeds)]
            values = [_values(load_results(folder)) for folder in folders]
            speed, epochs = zip(*map(_course, folders), strict=True)
            columns = [spread(column) for column in zip(*values, strict=True)]
            tail = [f"{median(speed):,.0f}", f"{mean(epochs):.1f}"]
            yield f"| {backbone}, {variant} | {' | '.join([*columns, *tail])} |"


def _values(results: Results) -> list[float]:
    groups = [results.metrics.all, *results.metrics.scenarios.values()]
    values = [group.auc for group in groups] + [group.log_loss for group in groups]
    missing = [value for value in values if value is None]
    if missing:
        raise ValueError(f"{results.dataset}: every scenario must hold both labels; one does not.")
    return [value for value in values if value is not None]


def _course(run: Path) -> tuple[float, int]:
    """Median training rows a second, and epochs trained."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["metrics"]["rows_per_s"] for line in lines if line["split"] == "train"]
    return median(speeds), max(line["epoch"] for line in lines)
