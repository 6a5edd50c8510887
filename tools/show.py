"""What a dataset, a knowledge store or a run folder holds, for people."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from msrec.data.llm.store import MANIFEST, KnowledgeStore
from msrec.data.schema import SCHEMA_FILE, Schema, load_schema
from msrec.launch.curves import Log, load_log
from msrec.launch.results import RESULTS_FILE, TITLES, cell, load_results, results_table
from msrec.tools.convert import remarks, summary_table

LEVELS = ("user", "scenario")


def show(folder: Path, console: Console | None = None) -> None:
    """Print what the folder is; its own files say which of the three.

    Raises:
        FileNotFoundError: it is none of them.
        ValueError: a file in it is broken.
    """
    console = console or Console()
    if (folder / SCHEMA_FILE).is_file():
        _show_dataset(load_schema(folder), console)
    elif levels := [f for f in (folder, *(folder / n for n in LEVELS)) if (f / MANIFEST).is_file()]:
        for level in levels:
            console.print(store_table(KnowledgeStore.open(level)))
    elif (folder / "config.yaml").is_file():
        _show_run(folder, console)
    else:
        raise FileNotFoundError(
            f"{folder} must be a dataset ({SCHEMA_FILE}), a store ({MANIFEST}) or a run "
            "(config.yaml); it has none of these files."
        )


def store_table(store: KnowledgeStore) -> Table:
    """The manifest, without the long lists of means and deviations."""
    table = Table(title=f"{store.path}: {len(store):,} vectors", show_header=False)
    for name, value in store.manifest.items():
        if name not in ("mean", "std", "bytes"):
            shown = f"{value:,}" if type(value) is int else str(value)
            table.add_row(name, shown[:12] if name.endswith("sha256") else shown)
    return table


def progress_table(log: Log) -> Table:
    """The validations of a run, in order; the best AUC is marked."""
    table = Table(title="validation")
    table.add_column("step", justify="right")
    names = [n for n in log.metrics("valid") if n == "log_loss/all" or n.startswith("auc/")]
    for name in names:
        metric, _, rows = name.partition("/")
        head = f"{TITLES[metric]} {rows.removeprefix('scenario=')}"
        table.add_column(head, justify="right", overflow="fold")
    steps = log.steps["valid"]
    best = max(steps, key=lambda step: steps[step].get("auc/all", 0.0))
    for step, metrics in sorted(steps.items()):
        values = [cell(metrics.get(name)) for name in names]
        table.add_row(f"{step:,}", *values, style="bold" if step == best else "")
    return table


def _show_dataset(schema: Schema, console: Console) -> None:
    if "rows" in schema.counts:
        console.print(summary_table(schema))
    table = Table("table", "rows", "features", title=f"{schema.name}: embedding tables")
    for name, rows in schema.tables.items():
        table.add_row(
            name, f"{rows:,}", ", ".join(f.name for f in schema.sparse if f.table == name)
        )
    console.print(table)
    console.print(f"dense: {', '.join(schema.dense) or 'none'}", highlight=False)
    console.print(f"labels: {', '.join(schema.labels)}", highlight=False)
    for scenario in schema.scenarios:
        console.print(f"{scenario.name}: {scenario.description}", highlight=False)
    for remark in remarks(schema):
        console.print(f"  {remark}", highlight=False)


def _show_run(folder: Path, console: Console) -> None:
    log = load_log(folder)
    committed = sorted((folder / "checkpoints").glob("step-*/COMMIT"))
    newest = committed[-1].parent.name if committed else "none"
    console.print(f"{folder}: newest checkpoint {newest}", highlight=False, soft_wrap=True)
    if log.steps.get("valid"):
        console.print(progress_table(log))
    if (folder / RESULTS_FILE).is_file():
        console.print(results_table(load_results(folder)))
