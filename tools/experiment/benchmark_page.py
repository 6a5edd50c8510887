"""docs/benchmark.md from the cells: protocol, tables, published figures, what falls short."""

import platform
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from msrec.tools.experiment.published import MOVIELENS, MOVIELENS_AUC_ONLY, spread
from msrec.tools.experiment.training_cells import Cell
from msrec.tools.experiment.tuning import START, search_space

if TYPE_CHECKING:
    from msrec.tools.experiment.benchmark_table import Pair

PUBLISHED_ON = "movielens"
LONGEST_CELL_S = 120


def write_page(pairs: Sequence["Pair"], trials: int, seeds: int, path: Path | None) -> str:
    """The page as Markdown; written to `path` if there is one."""
    text = "\n".join(_page(pairs, trials, seeds)) + "\n"
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return text


def _page(pairs: Sequence["Pair"], trials: int, seeds: int) -> Iterator[str]:
    cells = [c for p in pairs for c in (*p.cells("trial", trials), *p.cells("seed", seeds)) if c]
    yield "# Benchmark"
    yield ""
    yield "Every model of `msrec zoo`, bare, tuned alike. Remade by"
    yield ""
    yield "```sh"
    count = f"--trials {trials} --seeds {seeds}"
    from msrec.tools.experiment.benchmark_table import BENCHMARKS

    here = list(dict.fromkeys(pair.benchmark.name for pair in pairs))
    missing = [benchmark.title for benchmark in BENCHMARKS if benchmark.name not in here]
    only = "".join(f" --benchmark {name}" for name in here) if missing else ""
    yield f"msrec bench table RAW {count} --jobs 2{only} --page docs/benchmark.md"
    yield "```"
    if missing:
        yield ""
        names = "; ".join(missing)
        yield f"**Not run for this page:** {names}. The command without `--benchmark` runs all."
    yield ""
    yield (
        "RAW holds one folder of plain Parquet per data set (interactions, items, users). A killed "
        "command goes on with the cells that are missing; `--dry-run` says which."
    )
    yield ""
    yield (
        f"**Tuning**: per model and data set {trials} trials (Optuna's TPE; the first is the same "
        "start for all), judged by validation AUC; the best choice is then trained "
        f"{seeds} times, and only those runs see the test split. Every training has at most 10 "
        "epochs and stops after 2 without a better validation AUC. Tables under RowWiseAdagrad, "
        "dense parts under Adam, constant rates. `width` scales all layers of a model's default "
        "sizes. Embeddings are 16 wide, 32 in the rows called wide."
    )
    if any(pair.contender.reads_llm for pair in pairs):
        yield ""
        yield (
            "The rows called llm read one text vector a user beside the embeddings: concatenated, "
            "or through a small mixture of experts as in KAR. The model is the config's "
            "`llm.model`: MiniLM-L6, a sentence encoder, which reads several times as fast as "
            "SmolLM2-135M."
        )
    yield ""
    yield "| tuned | range | start |"
    yield "|---|---|---|"
    for name, distribution in search_space().items():
        yield f"| {name} | {_range(distribution)} | {START[name]:g} |"
    yield ""
    yield (
        f"**Figures**: mean ± standard deviation over {seeds} seeds (initialisation and order of "
        "rows; the split is one). A test split of 100,000 rows alone has a standard error of about "
        ".0014 in AUC, the same for all models of a table. rows/s: 200 steps on one core, one "
        f"model after the other, on {_processor()}; minutes: all trainings of the model together, "
        "two at a time on two cores, whatever else the machine did meanwhile: compare rows/s."
    )
    if cells:
        longest = max(cell.seconds for cell in cells)
        yield ""
        yield (
            f"{len(cells)} cells; the longest took {longest:.0f} s, "
            f"{sum(c.seconds > LONGEST_CELL_S for c in cells)} more than {LONGEST_CELL_S} s."
        )
    for _, group in groupby(pairs, key=lambda pair: pair.benchmark.name):
        yield from _section(list(group), trials, seeds)


def _section(pairs: Sequence["Pair"], trials: int, seeds: int) -> Iterator[str]:
    benchmark = pairs[0].benchmark
    yield ""
    yield f"## {benchmark.title}"
    yield ""
    yield benchmark.about
    yield ""
    judged = {
        p.contender.name: [c for c in p.cells("seed", seeds) if c and c.results] for p in pairs
    }
    some = next((cells for cells in judged.values() if cells), None)
    if some is None:
        yield "No cell is finished."
        return
    assert some[0].results is not None
    names = list(some[0].results.metrics.scenarios)
    published = benchmark.name == PUBLISHED_ON
    head = ["model", "AUC", *(["published"] if published else []), "log loss"]
    head += [f"AUC {name}" for name in names]
    head += ["dense parameters", "table parameters", "rows/s", "minutes"]
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for pair in pairs:
        cells = judged[pair.contender.name]
        if not cells:
            yield f"| {pair.contender.name} | not run |{' |' * (len(head) - 2)}"
            continue
        every = [c for c in (*pair.cells("trial", trials), *cells) if c]
        row = [
            pair.contender.name
            + ("" if len(cells) == seeds else f" ({len(cells)} of {seeds} seeds)")
        ]
        row.append(spread(_column(cells, None, "auc")))
        if published:
            row.append(_published(pair.contender.name))
        row.append(spread(_column(cells, None, "log_loss")))
        row += [spread(_column(cells, name, "auc")) for name in names]
        row += [f"{cells[0].parameters:,}", f"{cells[0].table_parameters:,}"]
        timed = [c.rows_per_s for c in pair.cells("speed", 1) if c]
        row += [f"{timed[0]:,.0f}" if timed else ""]
        row.append(f"{sum(c.seconds for c in every) / 60:.1f}")
        yield f"| {' | '.join(row)} |"
    yield from _losses(pairs, judged, names)
    if published:
        yield from _short(judged)
    yield from _chosen(pairs, judged, trials)


def _losses(
    pairs: Sequence["Pair"], judged: dict[str, list[Cell]], names: Sequence[str]
) -> Iterator[str]:
    yield ""
    yield "Log loss per scenario:"
    yield ""
    yield f"| model | {' | '.join(names)} |"
    yield f"|{'---|' * (len(names) + 1)}"
    for pair in pairs:
        if cells := judged[pair.contender.name]:
            losses = " | ".join(spread(_column(cells, name, "log_loss")) for name in names)
            yield f"| {pair.contender.name} | {losses} |"


def _short(judged: dict[str, list[Cell]]) -> Iterator[str]:
    """The models below their published AUC, if any."""
    known = {name: row[0] for name, row in MOVIELENS.items()} | MOVIELENS_AUC_ONLY
    found = {m: mean(_column(c, None, "auc")) for m, c in judged.items() if c and m in known}
    below = [f"{m} ({auc:.4f} < {known[m]:.4f})" for m, auc in found.items() if auc < known[m]]
    yield ""
    yield (
        f"Published: Scenario-Wise-Rec (arXiv 2412.17374) on its own random split. Of the "
        f"{len(found)} models with a published AUC, {len(found) - len(below)} reach it here"
        + (f"; below it: {', '.join(below)}." if below else ".")
    )


def _chosen(pairs: Sequence["Pair"], judged: dict[str, list[Cell]], trials: int) -> Iterator[str]:
    names = list(START)
    yield ""
    yield "<details><summary>What was chosen, by validation AUC of the trials</summary>"
    yield ""
    yield f"| model | {' | '.join(names)} | best trial | trials' AUC | epochs |"
    yield f"|{'---|' * (len(names) + 4)}"
    for pair in pairs:
        if not (cells := judged[pair.contender.name]):
            continue
        choice = cells[0].choice
        aucs = [c.valid_auc for c in pair.cells("trial", trials) if c and c.valid_auc is not None]
        values = " | ".join(f"{choice[name]:.3g}" for name in names)
        epochs = f"{mean(c.epochs for c in cells):.1f}"
        spanned = f"{min(aucs):.4f} to {max(aucs):.4f}" if aucs else ""
        best = aucs.index(max(aucs)) if aucs else ""
        yield f"| {pair.contender.name} | {values} | {best} | {spanned} | {epochs} |"
    yield ""
    yield "</details>"


def _column(cells: Sequence[Cell], scenario: str | None, metric: str) -> list[float]:
    values = []
    for cell in cells:
        assert cell.results is not None
        metrics = cell.results.metrics
        value = getattr(metrics.all if scenario is None else metrics.scenarios[scenario], metric)
        if value is None:
            raise ValueError(
                f"{scenario or 'all rows'} must hold both labels; {metric} is undefined."
            )
        values.append(value)
    return values


def _published(model: str) -> str:
    if model in MOVIELENS:
        return f"{MOVIELENS[model][0]:.4f}"
    return f"{MOVIELENS_AUC_ONLY[model]:.4f}" if model in MOVIELENS_AUC_ONLY else ""


def _range(distribution: object) -> str:
    if hasattr(distribution, "choices"):
        return ", ".join(f"{choice:g}" for choice in distribution.choices)
    low, high = getattr(distribution, "low"), getattr(distribution, "high")  # noqa: B009
    step = getattr(distribution, "step", None)
    return f"{low:g} to {high:g}, " + (f"steps of {step:g}" if step else "log-uniform")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
