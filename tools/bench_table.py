"""`msrec bench table`: every model on every benchmark, tuned alike, over several seeds."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from msrec.data.schema import SCHEMA_FILE
from msrec.model.backbones import BACKBONES
from msrec.tools.cells import Cell, load_cell, run_cell
from msrec.tools.convert import convert
from msrec.tools.tuning import Choice, overrides, propose, search_space

CONFIGS = Path("configs/benchmark")


@dataclass(frozen=True)
class Benchmark:
    """A data set and its protocol; the run's config is `configs/benchmark/NAME.yaml`."""

    name: str
    title: str
    about: str
    raw: str
    """Folder with interactions, items and users .parquet, below the root that is given."""
    mapping: str
    trial_epochs: int
    convert: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """The base config of its runs."""
        return CONFIGS / f"{self.name}.yaml"


BENCHMARKS = (
    Benchmark(
        "movielens",
        "MovieLens-1M, published protocol",
        "All 1,000,209 ratings, label rating > 3, three age groups, random 8:1:1.",
        raw="ml1m",
        mapping="configs/movielens/tables.yaml",
        trial_epochs=3,
    ),
    Benchmark(
        "movielens_temporal",
        "MovieLens-1M, temporal",
        "The same ratings cut by global time 8:1:1; six genre groups, so that users are in several "
        "scenarios (with age groups nothing can be carried over within a user).",
        raw="ml1m",
        mapping="configs/benchmark/movielens_genre.tables.yaml",
        trial_epochs=2,
        convert={"split": "time", "scenario_column": "scenario_alt"},
    ),
    Benchmark(
        "amazon_arts_office",
        "Amazon Arts and Office, per-user last",
        "Amazon 2018, two categories, 9,577 users of whom nearly all are in both; purchases "
        "against 4 **sampled** negatives each (popularity^0.75), each user's last 10 % test, the "
        "10 % before validation.",
        raw="amazon_arts_office",
        mapping="configs/benchmark/amazon_arts_office.tables.yaml",
        trial_epochs=2,
        convert={"split": "user_last"},
    ),
    Benchmark(
        "amazon23_3cat",
        "Amazon 2023, three categories, per-user last",
        "24,435 reviews, label rating = 5; each user's last review test, the one before "
        "validation (users with two or fewer train only). Small: a check of cold items, not a "
        "ranking of models.",
        raw="amazon23_3cat",
        mapping="configs/benchmark/amazon23_3cat.tables.yaml",
        trial_epochs=4,
        convert={"split": "user_last", "last": 1},
    ),
)

MODEL_OPTIONS = {"separate": ["embeddings.per_scenario=true"]}
"""Options that belong to a model whatever is tuned."""


@dataclass(frozen=True)
class Pair:
    """One model on one benchmark: its trials, then its seeds."""

    benchmark: Benchmark
    model: str
    out: Path

    def folder(self, kind: str, number: int) -> Path:
        """Where a cell stands."""
        return self.out / self.benchmark.name / self.model / f"{kind}-{number}"

    def cells(self, kind: str, count: int) -> list[Cell | None]:
        """The cells of a kind, None where one is not finished."""
        return [load_cell(self.folder(kind, number)) for number in range(count)]


def bench_table(
    raw: Path,
    out: Path,
    benchmarks: Sequence[str],
    models: Sequence[str],
    trials: int,
    seeds: int,
    jobs: int,
    dry_run: bool,
    page: Path | None,
) -> None:
    """Run every cell that is not there yet; print and write the page.

    Args:
        raw: folder of the raw data sets.
        out: gets `data/` and a folder per benchmark, model and cell.
        benchmarks: names; empty means all.
        models: names of backbones; empty means all.
        trials: trainings to choose the options with, on validation.
        seeds: trainings with the best options.
        jobs: cells at the same time, one thread each.
        dry_run: only say what is there and what would run.
        page: Markdown file to write.

    Raises:
        FileNotFoundError: raw data is missing, or this is not the root of a checkout.
        ValueError: a name is unknown, optuna is missing, or cells failed.
    """
    from msrec.tools.benchmark_page import write_page

    console = Console()
    pairs = [Pair(b, m, out) for b in _chosen(benchmarks) for m in _known(models)]
    left = sum(c is None for p in pairs for c in _cells(p, trials, seeds))
    total = len(pairs) * (trials + seeds)
    console.print(f"{total - left} of {total} cells are done", highlight=False)
    if dry_run:
        for pair in pairs:
            missing = sum(c is None for c in _cells(pair, trials, seeds))
            if missing:
                console.print(f"  {pair.benchmark.name} {pair.model}: {missing} cells to run")
        return
    if left:
        search_space()
        for benchmark in {p.benchmark.name: p.benchmark for p in pairs}.values():
            _convert(benchmark, raw, out, console)
        _run(pairs, trials, seeds, jobs, left, console)
    text = write_page(pairs, trials, seeds, page)
    (out / "table.md").write_text(text)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _cells(pair: Pair, trials: int, seeds: int) -> list[Cell | None]:
    return [*pair.cells("trial", trials), *pair.cells("seed", seeds)]


def _chosen(names: Sequence[str]) -> list[Benchmark]:
    known = {b.name: b for b in BENCHMARKS}
    for name in names:
        if name not in known:
            raise ValueError(f"a benchmark must be one of {', '.join(known)}; got {name!r}.")
    return [b for b in BENCHMARKS if not names or b.name in names]


def _known(models: Sequence[str]) -> list[str]:
    for name in models:
        if name not in BACKBONES:
            raise ValueError(f"a model must be one of {', '.join(BACKBONES)}; got {name!r}.")
    return [name for name in BACKBONES if not models or name in models]


def _convert(benchmark: Benchmark, raw: Path, out: Path, console: Console) -> None:
    if not benchmark.config.is_file():
        raise FileNotFoundError(
            f"{benchmark.config} must exist: run this from the root of a checkout."
        )
    data = out / "data" / benchmark.name
    if (data / SCHEMA_FILE).is_file():
        return
    source = raw / benchmark.raw
    convert("tables", source, data, mapping=benchmark.mapping, console=console, **benchmark.convert)


def _run(
    pairs: Sequence[Pair], trials: int, seeds: int, jobs: int, left: int, console: Console
) -> None:
    """Cells run in `jobs` long-lived processes; a pair's cells follow each other."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before a process imports torch
    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failures: list[str] = []
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as processes,
        ThreadPoolExecutor(jobs) as threads,
    ):
        task = progress.add_task("cells", total=left)

        def run_pair(pair: Pair) -> None:
            def run(folder: Path, choice: Choice, options: list[str], test: bool) -> Cell:
                found = load_cell(folder)
                if found is not None and found.options == options:
                    return found
                config = pair.benchmark.config
                cell = processes.submit(run_cell, folder, config, choice, options, test).result()
                progress.advance(task)
                return cell

            try:
                auc = _tune_and_judge(pair, trials, seeds, run)
                said = f"{pair.benchmark.name} {pair.model}: test AUC {auc:.4f}"
                console.print(said, highlight=False)
            except Exception as error:
                failures.append(f"{pair.benchmark.name} {pair.model}: {error!r}")
                console.print(failures[-1], highlight=False)

        list(threads.map(run_pair, pairs))
    if failures:
        raise ValueError(f"{len(failures)} of {len(pairs)} failed; the first: {failures[0]}")


def _tune_and_judge(
    pair: Pair, trials: int, seeds: int, run: Callable[[Path, Choice, list[str], bool], Cell]
) -> float:
    """The trials, the seeds with the best of them; the mean test AUC."""
    benchmark, done = pair.benchmark, list[tuple[Choice, float]]()
    base = [
        f"dataset={pair.out}/data/{benchmark.name}",
        f"backbone.name={pair.model}",
        *MODEL_OPTIONS.get(pair.model, []),
    ]
    for number in range(trials):
        choice = propose(number, done)
        short = [f"trainer.epochs={benchmark.trial_epochs}", "seed=0"]
        options = [*base, *overrides(choice, pair.model), *short]
        cell = run(pair.folder("trial", number), choice, options, False)
        if cell.valid_auc is not None:
            done.append((cell.choice, cell.valid_auc))
    if not done:
        raise ValueError("no trial ended with a finite loss")
    best = max(done, key=lambda found: found[1])[0]
    aucs = []
    for seed in range(seeds):
        options = [*base, *overrides(best, pair.model), f"seed={seed}"]
        cell = run(pair.folder("seed", seed), best, options, True)
        if cell.results is None or cell.results.metrics.all.auc is None:
            raise ValueError(f"seed {seed} ended without a finite loss")
        aucs.append(cell.results.metrics.all.auc)
    return sum(aucs) / len(aucs)
