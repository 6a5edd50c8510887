"""What a report says of a run besides its numbers: data, knowledge, sharding plan, slices."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from msrec.data.llm.store import KnowledgeStore
from msrec.data.schema import SPLITS, Schema, load_schema
from msrec.launch.config import RunConfig
from msrec.launch.evaluation.coverage import coverage
from msrec.launch.evaluation.results import Results, cell, cell_of
from msrec.launch.evaluation.slices import MEANING
from msrec.model.metrics.definitions import Metrics

PLAN_FILE = "plan.json"
Rows = list[list[str]]
"""A table: its head, then its rows."""


def data_rows(schema: Schema) -> Rows:
    """Rows and the share of positives, by scenario and split; nothing where nobody counted."""
    rows, positives = schema.counts.get("rows"), schema.counts.get("positives")
    if not rows or not positives:
        return []
    head = ["scenario", *(f"{split}, {what}" for split in SPLITS for what in ("rows", "positive"))]
    found = [head]
    for name in ("all", *(scenario.name for scenario in schema.scenarios)):
        cells = [name]
        for split in SPLITS:
            count = rows[split].get(name, 0)
            share = positives[split].get(name, 0) / count if count else None
            cells += [f"{count:,}", "" if share is None else f"{share:.1%}"]
        found.append(cells)
    return found


def about_data(schema: Schema) -> str:
    """A sentence on users, items, tables and the split."""
    split = schema.split
    how = split.protocol or split.method
    until = "" if split.train_until is None else f", training until timestamp {split.train_until}"
    rows = sum(schema.tables.values())
    return (
        f"{schema.name}: {schema.num_users:,} users, {schema.num_items:,} items, "
        f"{len(schema.tables)} tables of {rows:,} rows in all; split {how}{until}."
    )


def knowledge_lines(config: RunConfig) -> list[str]:
    """Of each level of the store that the run reads, whom it knows; or why nobody can say."""
    store = config.llm.store
    if store is None or not config.knowledge_levels:
        return []
    lines = []
    for level in config.knowledge_levels:
        try:
            known = coverage(KnowledgeStore.open(store / level), config.dataset)
            lines.append(f"{level}: {', '.join(known)} have a vector ({config.llm.model}).")
        except (FileNotFoundError, ValueError) as error:
            lines.append(f"{level}: not looked at, for {error}")
    return lines


def schema_of(config: RunConfig) -> Schema | None:
    """Of the run's dataset, where this machine has it."""
    try:
        return load_schema(config.dataset)
    except OSError:
        return None


def plan_rows(run_dir: Path) -> Rows:
    """Where each table was; nothing where the run wrote no plan."""
    path = run_dir / PLAN_FILE
    if not path.is_file():
        return []
    found = [["table", "sharding", "kernel", "ranks", "rows", "dim"]]
    for module in json.loads(path.read_text())["modules"].values():
        for table, entry in module.items():
            shards = entry["shards"]
            ends = [
                max((s["offsets"][axis] + s["sizes"][axis] for s in shards), default=0)
                for axis in (0, 1)
            ]
            sizes = [f"{ends[0]:,}", str(ends[1])] if shards else ["", ""]
            ranks = ", ".join(map(str, entry["ranks"])) or "all"
            found.append([table, entry["sharding_type"], entry["compute_kernel"], ranks, *sizes])
    return found


def slice_tables(judged: Mapping[str, Results]) -> list[tuple[str, Rows]]:
    """AUC and log loss by group of each slice that a run was judged by, a column a run."""
    names = dict.fromkeys(name for result in judged.values() for name in result.slices)
    return [(f"By {MEANING[name]}", _slice_rows(judged, name)) for name in names]


def _slice_rows(judged: Mapping[str, Results], name: str) -> Rows:
    having = {run: result.slices[name] for run, result in judged.items() if name in result.slices}
    groups = dict.fromkeys(group for slices in having.values() for group in slices)
    head = [name, "rows", *(f"{run}, {what}" for run in having for what in ("AUC", "log loss"))]
    return [head, *(_group_row(group, list(having.values())) for group in groups)]


def _group_row(group: str, slices: Sequence[Mapping[str, Metrics]]) -> list[str]:
    cells = [group]
    found = [one.get(group) for one in slices]
    rows = next((metrics.rows for metrics in found if metrics is not None), 0)
    cells.append(cell(rows))
    for metrics in found:
        for metric in ("auc", "log_loss"):
            cells.append("" if metrics is None else cell_of(metrics, metric, is_line=True))
    return cells
