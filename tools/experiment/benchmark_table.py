"""`msrec bench table`: every model on every benchmark, tuned alike, over several seeds."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    track,
)

from msrec.data.convert.split import SplitChoice
from msrec.data.schema import SCHEMA_FILE, Split
from msrec.model.backbones import BACKBONES
from msrec.tools.convert import convert
from msrec.tools.experiment.training_cells import (
    Cell,
    cell_processes,
    load_cell,
    run_cell,
    run_msrec,
)
from msrec.tools.experiment.tuning import Choice, overrides, propose, search_space

CONFIGS = Path("configs/benchmark")
TIMED_STEPS = 200


@dataclass(frozen=True)
class Benchmark:
    """A data set and its protocol; the run's config is `configs/benchmark/NAME.yaml`."""

    name: str
    title: str
    about: str
    raw: str
    """Folder with interactions, items and users .parquet, below the root that is given."""
    mapping: str
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
        convert={"choice": SplitChoice.of("scenario-wise")},
    ),
    Benchmark(
        "movielens_temporal",
        "MovieLens-1M, temporal",
        "The same ratings cut by global time 8:1:1; six genre groups, so that users are in several "
        "scenarios (with age groups nothing can be carried over within a user).",
        raw="ml1m",
        mapping="configs/benchmark/movielens_genre.tables.yaml",
        convert={"choice": SplitChoice.of("temporal"), "scenario_column": "scenario_alt"},
    ),
    Benchmark(
        "amazon_arts_office",
        "Amazon Arts and Office, per-user last",
        "Amazon 2018, two categories, 9,577 users of whom nearly all are in both; purchases "
        "against 4 **sampled** negatives each (popularity^0.75), each user's last 10 % test, the "
        "10 % before validation.",
        raw="amazon_arts_office",
        mapping="configs/benchmark/amazon_arts_office.tables.yaml",
        convert={"choice": SplitChoice("user_last")},
    ),
    Benchmark(
        "amazon23_3cat",
        "Amazon 2023, three categories, per-user last",
        "24,435 reviews, label rating = 5; each user's last review test, the one before "
        "validation (users with two or fewer train only). Small: a check of cold items, not a "
        "ranking of models.",
        raw="amazon23_3cat",
        mapping="configs/benchmark/amazon23_3cat.tables.yaml",
        convert={"choice": SplitChoice.of("per-user-last")},
    ),
)


@dataclass(frozen=True)
class Contender:
    """A row of the table: a backbone and the options that are its own whatever is tuned."""

    name: str
    backbone: str
    options: tuple[str, ...] = ()
    reads_llm: bool = False


OWN_OPTIONS = {"separate": ("embeddings.per_scenario=true",)}
CONTENDERS = {
    contender.name: contender
    for contender in (
        *(Contender(name, name, OWN_OPTIONS.get(name, ())) for name in BACKBONES),
        Contender("mlp_wide", "mlp", ("embeddings.dim=32",)),
        Contender("deepfm_wide", "deepfm", ("embeddings.dim=32",)),
        Contender("mlp_llm_concat", "mlp", ("llm_feature.kind=concat", "llm_feature.dim=32"), True),
        Contender("mlp_llm_experts", "mlp", ("llm_feature.kind=experts",), True),
    )
}


@dataclass(frozen=True)
class Pair:
    """One model on one benchmark: its trials, then its seeds."""

    benchmark: Benchmark
    contender: Contender
    out: Path

    def folder(self, kind: str, number: int) -> Path:
        """Where a cell stands."""
        return self.out / self.benchmark.name / self.contender.name / f"{kind}-{number}"

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
        models: names of `CONTENDERS`; empty means all.
        trials: trainings to choose the options with, on validation.
        seeds: trainings with the best options.
        jobs: cells at the same time, one thread each.
        dry_run: only say what is there and what would run.
        page: Markdown file to write.

    Raises:
        FileNotFoundError: raw data is missing, or this is not the root of a checkout.
        ValueError: a name is unknown, optuna is missing, or cells failed.
    """
    from msrec.tools.experiment.benchmark_page import write_page

    console = Console()
    pairs = [Pair(b, m, out) for b in _chosen(benchmarks) for m in _known(models)]
    left = sum(c is None for p in pairs for c in _cells(p, trials, seeds))
    total = len(pairs) * (trials + seeds + 1)
    console.print(f"{total - left} of {total} cells are done", highlight=False)
    if dry_run:
        for pair in pairs:
            missing = sum(c is None for c in _cells(pair, trials, seeds))
            if missing:
                console.print(
                    f"  {pair.benchmark.name} {pair.contender.name}: {missing} cells to run"
                )
        return
    if left:
        search_space()
        for benchmark in {p.benchmark.name: p.benchmark for p in pairs}.values():
            _convert(benchmark, raw, out, console)
        _encode(pairs, trials, seeds, jobs, console)
        _run(pairs, trials, seeds, jobs, console)
        _time(pairs, console)
    text = write_page(pairs, trials, seeds, page)
    (out / "table.md").write_text(text)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _cells(pair: Pair, trials: int, seeds: int) -> list[Cell | None]:
    return [*pair.cells("trial", trials), *pair.cells("seed", seeds), *pair.cells("speed", 1)]


def _chosen(names: Sequence[str]) -> list[Benchmark]:
    known = {b.name: b for b in BENCHMARKS}
    for name in names:
        if name not in known:
            raise ValueError(f"a benchmark must be one of {', '.join(known)}; got {name!r}.")
    return [b for b in BENCHMARKS if not names or b.name in names]


def _known(models: Sequence[str]) -> list[Contender]:
    for name in models:
        if name not in CONTENDERS:
            raise ValueError(f"a model must be one of {', '.join(CONTENDERS)}; got {name!r}.")
    return [c for name, c in CONTENDERS.items() if not models or name in models]


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


def places(benchmark: Benchmark, out: Path) -> list[str]:
    """Where a benchmark's data and knowledge store are, as overrides of its config."""
    return [f"dataset={out}/data/{benchmark.name}", f"llm.store={out}/store/{benchmark.name}"]


def _encode(pairs: Sequence[Pair], trials: int, seeds: int, jobs: int, console: Console) -> None:
    """Stores for the data sets that a contender with cells to run reads; `encode` resumes."""
    wanted = {
        pair.benchmark.name: pair.benchmark
        for pair in pairs
        if pair.contender.reads_llm and None in _cells(pair, trials, seeds)
    }

    def encode(benchmark: Benchmark) -> str:
        run_msrec("encode", benchmark.config, *places(benchmark, pairs[0].out))
        return benchmark.name

    with ThreadPoolExecutor(jobs) as threads:
        for name in threads.map(encode, wanted.values()):
            console.print(f"{name}: users and scenarios are encoded", highlight=False)


def _run(pairs: Sequence[Pair], trials: int, seeds: int, jobs: int, console: Console) -> None:
    """Cells run in `jobs` long-lived processes; a pair's cells follow each other."""
    trained = (c for p in pairs for c in (*p.cells("trial", trials), *p.cells("seed", seeds)))
    left = sum(cell is None for cell in trained)
    if not left:
        return
    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failures: list[str] = []
    with (
        Progress(*columns, console=console) as progress,
        cell_processes(jobs) as processes,
        ThreadPoolExecutor(jobs) as threads,
    ):
        task = progress.add_task("cells", total=left)

        def run_pair(pair: Pair) -> None:
            def run(folder: Path, choice: Choice, options: list[str], judge: Split | None) -> Cell:
                found = load_cell(folder)
                if found is not None and found.options == options:
                    return found
                config = pair.benchmark.config
                cell = processes.submit(run_cell, folder, config, choice, options, judge).result()
                progress.advance(task)
                return cell

            try:
                auc = _tune_and_judge(pair, trials, seeds, run)
                said = f"{pair.benchmark.name} {pair.contender.name}: test AUC {auc:.4f}"
                console.print(said, highlight=False)
            except Exception as error:
                failures.append(f"{pair.benchmark.name} {pair.contender.name}: {error!r}")
                console.print(failures[-1], highlight=False)

        list(threads.map(run_pair, pairs))
    if failures:
        raise ValueError(f"{len(failures)} of {len(pairs)} failed; the first: {failures[0]}")


def _time(pairs: Sequence[Pair], console: Console) -> None:
    """Some steps of every model with its best options, one at a time, when nothing else runs."""
    left = [pair for pair in pairs if load_cell(pair.folder("speed", 0)) is None]
    with cell_processes(1) as process:
        for pair in track(left, "timing", console=console, transient=True):
            judged = load_cell(pair.folder("seed", 0))
            assert judged is not None
            options = [*judged.options, f"trainer.max_steps={TIMED_STEPS}"]
            args = (pair.folder("speed", 0), pair.benchmark.config, judged.choice, options, None)
            process.submit(run_cell, *args).result()


def _tune_and_judge(
    pair: Pair,
    trials: int,
    seeds: int,
    run: Callable[[Path, Choice, list[str], Split | None], Cell],
) -> float:
    """The trials, the seeds with the best of them; the mean test AUC."""
    benchmark, done = pair.benchmark, list[tuple[Choice, float]]()
    base = [
        *places(benchmark, pair.out),
        f"backbone.name={pair.contender.backbone}",
        *pair.contender.options,
    ]
    for number in range(trials):
        choice = propose(number, done)
        options = [*base, *overrides(choice, pair.contender.backbone), "seed=0"]
        cell = run(pair.folder("trial", number), choice, options, None)
        if cell.valid_auc is not None:
            done.append((cell.choice, cell.valid_auc))
    if not done:
        raise ValueError("no trial ended with a finite loss")
    best = max(done, key=lambda found: found[1])[0]
    aucs = []
    for seed in range(seeds):
        options = [*base, *overrides(best, pair.contender.backbone), f"seed={seed}"]
        cell = run(pair.folder("seed", seed), best, options, "test")
        if cell.results is None or cell.results.metrics.all.auc is None:
            raise ValueError(f"seed {seed} ended without a finite loss")
        aucs.append(cell.results.metrics.all.auc)
    return sum(aucs) / len(aucs)
