"""Builds the report's section on the setup of runs: data, knowledge, plan, config, versions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msrec.data.io.yaml_files import read_yaml, yaml_text
from msrec.data.llm.store import KnowledgeStore
from msrec.data.schema import SPLITS, Schema, load_schema
from msrec.launch.config.run_config import CONFIG_FILE, RunConfig, load_config
from msrec.launch.evaluation.coverage import coverage
from msrec.launch.evaluation.results import RESULTS_FILE, load_results
from msrec.launch.reporting.page import Block, DataTable, Details, Rows, Section, Text

PLAN_FILE, VERSIONS_FILE = "plan.json", "versions.json"


def setup_section(folders: Mapping[str, Path]) -> Section:
    """Returns the section; facts that a run folder or this machine does not have are left out.

    Args:
        folders: name of the run -> run folder.
    """
    values = {name: _config_values(folder / CONFIG_FILE) for name, folder in folders.items()}
    configs = {
        n: load_config(folders[n] / CONFIG_FILE) for n, v in values.items() if "dataset" in v
    }
    blocks = [*_data_blocks(configs), *_history_blocks(folders), *_knowledge_blocks(configs)]
    for name, folder in folders.items():
        if rows := _plan_rows(_read(folder / PLAN_FILE)):
            blocks.append(Details(f"Sharding plan of {name}", [DataTable(rows, is_text=True)]))
    if rows := _differences(values):
        blocks.append(DataTable(rows, "Config differences", is_text=True))
    for name, config in values.items():
        if config:
            blocks.append(Details(f"Config of {name}", [Text(yaml_text(config), "code")]))
    for name, folder in folders.items():
        if versions := json.loads(_read(folder / VERSIONS_FILE) or "{}"):
            rows = [["package", "version"], *map(list, versions.items())]
            blocks.append(Details(f"Versions of {name}", [DataTable(rows, is_text=True)]))
    return Section("Setup", blocks)


def _config_values(path: Path) -> dict[str, Any]:
    values = read_yaml(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold keys and values; it holds {type(values).__name__}.")
    return values


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _data_blocks(configs: Mapping[str, RunConfig]) -> list[Block]:
    """Describes each dataset that a run was trained on and that this machine has."""
    blocks: list[Block] = []
    for folder in dict.fromkeys(config.dataset for config in configs.values()):
        try:
            schema = load_schema(folder)
        except OSError:
            continue
        blocks.append(Text(_about_data(schema)))
        if rows := _data_rows(schema):
            blocks.append(DataTable(rows, "Data"))
    return blocks


def _about_data(schema: Schema) -> str:
    split = schema.split
    method = split.protocol or split.method
    until = "" if split.train_until is None else f", training until timestamp {split.train_until}"
    rows = sum(schema.tables.values())
    return (
        f"{schema.name}: {schema.num_users:,} users, {schema.num_items:,} items, "
        f"{len(schema.tables)} tables of {rows:,} rows in all; split {method}{until}."
    )


def _data_rows(schema: Schema) -> Rows:
    """Returns rows and share of positives by scenario and split, if the schema has counts."""
    rows, positives = schema.counts.get("rows"), schema.counts.get("positives")
    if not rows or not positives:
        return []
    head = ["scenario", *(f"{split}, {fact}" for split in SPLITS for fact in ("rows", "positive"))]
    table = [head]
    for name in ("all", *(scenario.name for scenario in schema.scenarios)):
        cells = [name]
        for split in SPLITS:
            count = rows[split].get(name, 0)
            share = f"{positives[split].get(name, 0) / count:.1%}" if count else ""
            cells += [f"{count:,}", share]
        table.append(cells)
    return table


def _history_blocks(folders: Mapping[str, Path]) -> list[Block]:
    """Describes the ordered histories of the evaluated runs that read some."""
    blocks: list[Block] = []
    for name, folder in folders.items():
        evaluated = (folder / RESULTS_FILE).is_file()
        if evaluated and (history := load_results(folder).history) is not None:
            events = f"the {history.max_len} newest of {history.events} earlier rows of the user"
            blocks.append(Text(f"Histories of {name}: {events}, protocol {history.protocol}."))
    return blocks


def _knowledge_blocks(configs: Mapping[str, RunConfig]) -> list[Block]:
    """Describes how much of the data the knowledge stores of the runs cover."""
    blocks: list[Block] = []
    for name, config in configs.items():
        store = config.llm.store
        if store is None or not config.knowledge_levels:
            continue
        lines = []
        for level in config.knowledge_levels:
            try:
                covered = ", ".join(coverage(KnowledgeStore.open(store / level), config.dataset))
                lines.append(f"{level}: {covered} have a vector ({config.llm.model}).")
            except (FileNotFoundError, ValueError) as error:
                lines.append(f"{level}: not available: {error}")
        blocks.append(Text(f"Knowledge of {name}: {' '.join(lines)}"))
    return blocks


def _plan_rows(plan: str) -> Rows:
    """Returns the sharding of each table from the text of a plan file; empty without a plan."""
    if not plan:
        return []
    rows = [["table", "sharding", "kernel", "ranks", "rows", "dim"]]
    for module in json.loads(plan)["modules"].values():
        for table, entry in module.items():
            shards = entry["shards"]
            num_rows, dim = (
                max((shard["offsets"][axis] + shard["sizes"][axis] for shard in shards), default=0)
                for axis in (0, 1)
            )
            sizes = [f"{num_rows:,}", str(dim)] if shards else ["", ""]
            ranks = ", ".join(map(str, entry["ranks"])) or "all"
            rows.append([table, entry["sharding_type"], entry["compute_kernel"], ranks, *sizes])
    return rows


def _differences(configs: Mapping[str, dict[str, Any]]) -> Rows:
    """Returns the config keys whose values differ, with a column for each run; empty if none."""
    flat = [_flattened(config) for config in configs.values()]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [[key, *(values.get(key, "not set") for values in flat)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return [["key", *configs], *rows] if rows else []


def _flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = "none" if value is None else str(value)
    return flat
