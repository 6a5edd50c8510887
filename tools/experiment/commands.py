"""The commands `msrec experiment` and `msrec bench table`: run a sweep, then write its report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from msrec.tools.experiment.benchmark_page import benchmark_page
from msrec.tools.experiment.runner import run_sweep
from msrec.tools.experiment.sweep import load_sweep
from msrec.tools.experiment.sweep_report import write_sweep_report

BENCHMARK = Path("configs/benchmark/benchmark.yaml")
Item = TypeVar("Item")


def experiment(path: Path, jobs: int, dry_run: bool) -> None:
    """Runs what is missing of a sweep, then writes its reports.

    Args:
        path: file of the sweep.
        jobs: trainings at the same time, one thread each.
        dry_run: only check every config, and print what is missing.

    Raises:
        FileNotFoundError, ValueError: the sweep, a config or data is wrong, or trainings failed.
    """
    console = Console()
    sweep = load_sweep(path)
    run_sweep(sweep, jobs, dry_run, console)
    if not dry_run:
        text = write_sweep_report(sweep, path)
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def bench_table(
    raw: Path,
    out: Path,
    datasets: Sequence[str],
    models: Sequence[str],
    trials: int,
    seeds: int,
    jobs: int,
    dry_run: bool,
    page: Path | None,
) -> None:
    """Runs what is missing of the benchmark, then writes its page to OUT/table.md.

    Args:
        raw: folder of the raw data sets.
        out: folder of the converted data sets and the trainings.
        datasets: names of data sets; empty means all.
        models: names of models; empty means all.
        trials: trainings to tune each model with.
        seeds: trainings to evaluate each model with.
        jobs: trainings at the same time, one thread each.
        dry_run: only print what is missing.
        page: another Markdown file to write.

    Raises:
        FileNotFoundError: raw data is missing, or this is not the root of a checkout.
        ValueError: a name is unknown, optuna is missing, or trainings failed.
    """
    if not BENCHMARK.is_file():
        raise FileNotFoundError(f"{BENCHMARK} must exist: run this from the root of a checkout.")
    console = Console()
    benchmark = load_sweep(BENCHMARK)
    changes = {
        "raw": raw,
        "out": out,
        "trials": trials,
        "seeds": seeds,
        "datasets": _select("benchmark", benchmark.datasets, datasets),
        "backbones": _select("model", benchmark.backbones, models),
    }
    sweep = benchmark.model_copy(update=changes)
    run_sweep(sweep, jobs, dry_run, console)
    if dry_run:
        return
    left_out = [d.title for name, d in benchmark.datasets.items() if name not in sweep.datasets]
    text = benchmark_page(sweep, left_out)
    for path in filter(None, (out / "table.md", page)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _select(kind: str, known: Mapping[str, Item], names: Sequence[str]) -> dict[str, Item]:
    """Returns the entries with the given names, in the order of the file; all without names."""
    for name in names:
        if name not in known:
            raise ValueError(f"a {kind} must be one of {', '.join(known)}; got {name!r}.")
    return {name: entry for name, entry in known.items() if not names or name in names}
