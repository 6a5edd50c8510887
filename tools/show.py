"""Prints the contents of a dataset, a knowledge store, a run or a checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from msrec.data.io.atomic_files import check_files
from msrec.data.io.parquet_files import read_parquet
from msrec.data.io.paths import AnyPath, entries, is_file
from msrec.data.labels import LabelOptions
from msrec.data.llm.item_vectors import item_projection
from msrec.data.llm.knowledge import read_vectors
from msrec.data.llm.neighbours import neighbours, row_of, standardised
from msrec.data.llm.store import ITEM_SOURCES, LEVELS, MANIFEST, KnowledgeStore, item_source_folder
from msrec.data.schema import SCHEMA_FILE, SPLITS, Schema, load_schema
from msrec.launch.checkpointing.commit import COMMIT, read_commit
from msrec.launch.checkpointing.dcp_storage import Index, read_index
from msrec.launch.checkpointing.remote_runs import local_run
from msrec.launch.config.llm_section import LLMConfig
from msrec.launch.config.run_config import CONFIG_FILE
from msrec.launch.console import PlainConsole
from msrec.launch.evaluation.coverage import coverage
from msrec.launch.evaluation.results import RESULTS_FILE, load_results
from msrec.launch.evaluation.source_overlap import SourceOverlap, source_overlap
from msrec.launch.reporting.result_tables import TITLES, format_value, results_tables
from msrec.launch.training.metric_log import MetricLog, load_metric_log
from msrec.tools.convert import remarks, summary_table
from msrec.tools.histories import histories_table

SOURCE_DIM = LLMConfig().item_dim
"""Components by which the neighbours of an item source are found."""
SHOWN_RANKS = 8
"""Number of ranks, one of `data.balance.RANKS`, for the balance of a split by rows."""
SHOWN_CHARS = 60
"""Characters of a title that are shown."""
HIDDEN_MANIFEST_KEYS = ("mean", "std", "bytes", "crc32")


def show(
    folder: AnyPath,
    key: str | None = None,
    dataset: AnyPath | None = None,
    compare: tuple[str, str] | None = None,
    console: Console | None = None,
) -> None:
    """Prints the contents of a folder; its files decide what kind it is.

    Args:
        folder: dataset, knowledge store (or one of its levels), run or checkpoint.
        key: for a store: prints the neighbours of this user, scenario or item.
        dataset: for a store: prints how much of this dataset it covers, and titles of items.
        compare: for a store: two item sources; prints the items whose neighbours differ most.
        console: the console to print to.

    Raises:
        FileNotFoundError: the folder is none of them.
        ValueError: a file in it is broken, no level has the key, or an argument is for a store and
            the folder is none.
    """
    console = console or PlainConsole()
    given = {"--key": key, "--dataset": dataset, "--compare": compare}
    names = [name for name, value in given.items() if value is not None]
    is_other = any(is_file(folder / name) for name in (SCHEMA_FILE, CONFIG_FILE, COMMIT))
    if names and is_other:
        raise ValueError(
            f"{' and '.join(names)} must be given with a knowledge store; {folder} is none. Leave "
            "them out."
        )
    if is_file(folder / SCHEMA_FILE):
        _show_dataset(load_schema(folder), console)
    elif compare is not None:
        if compare[0] == compare[1]:
            raise ValueError(f"--compare must name two different sources; got {compare[0]} twice.")
        _show_differences(folder, compare, dataset, console)
    elif levels := _level_folders(folder):
        _show_store([KnowledgeStore.open(level) for level in levels], key, dataset, console)
    elif is_file(folder / CONFIG_FILE):
        _show_run(folder, console)
    elif is_file(folder / COMMIT):
        _show_checkpoint(local_run(folder), console)
    else:
        raise FileNotFoundError(
            f"{folder} must be a dataset ({SCHEMA_FILE}), a store ({MANIFEST}), a run "
            f"(config.yaml) or a checkpoint ({COMMIT}); it has none of these files."
        )


def _show_dataset(schema: Schema, console: Console) -> None:
    if "rows" in schema.counts:
        console.print(summary_table(schema))
    console.print(tables_table(schema))
    if schema.histories:
        console.print(histories_table(schema))
    console.print(f"dense: {', '.join(schema.dense) or 'none'}", highlight=False)
    labels = [_label_text(name, schema.label(name)) for name in schema.labels]
    console.print(f"labels: {', '.join(labels)}", highlight=False)
    for scenario in schema.scenarios:
        console.print(f"{scenario.name}: {scenario.description}", highlight=False)
    for remark in remarks(schema, of_tables=False):
        console.print(f"  {remark}", highlight=False)


def tables_table(schema: Schema) -> Table:
    """Returns the embedding tables: rows, unknown ids, collisions, balance of a split by rows."""
    table = Table(title=f"{schema.name}: embedding tables")
    for head in ("table", "features"):
        table.add_column(head, overflow="fold")
    hottest = f"hottest of {SHOWN_RANKS} ranks, by value"
    unknown_head = f"unknown: {', '.join(SPLITS)}"
    for head in ("rows", unknown_head, "values that share all rows", hottest, "as stored"):
        table.add_column(head, justify="right")
    unknown, collisions, ranks = (
        schema.counts.get(name, {}) for name in ("unknown", "collisions", "hottest_rank")
    )
    for name, rows in schema.tables.items():
        features = [f.name for f in schema.sparse if f.table == name]
        by_split = [sum(unknown.get(f, {}).get(split, 0) for f in features) for split in SPLITS]
        shared = [collisions[f] for f in features if collisions.get(f)]
        # For each feature: the load of the hottest rank as stored and, in newer datasets, by value.
        loads = [ranks[f][str(SHOWN_RANKS)] for f in features if ranks.get(f)]
        stored, by_value = (
            max((load[kind] for load in loads if len(load) > kind), default=None) for kind in (0, 1)
        )
        table.add_row(
            name,
            ", ".join(features),
            f"{rows:,}",
            "  ".join(f"{count:,}" for count in by_split),
            ", ".join(f"{c['shared']:,} of {c['values']:,}" for c in shared) or "-",
            *("-" if load is None else f"{load:.2f}" for load in (by_value, stored)),
        )
    return table


def _level_folders(folder: AnyPath) -> list[AnyPath]:
    """Returns the finished levels and item sources of a store, or the folder if it is one."""
    folders = [folder, *(folder / name for name in LEVELS), *entries(folder / ITEM_SOURCES)]
    return [level for level in folders if is_file(level / MANIFEST)]


def _show_store(
    stores: list[KnowledgeStore], key: str | None, dataset: AnyPath | None, console: Console
) -> None:
    has_key = False
    for store in stores:
        console.print(store_table(store))
        console.print(norm_line(store), highlight=False)
        if dataset is not None:
            covered = ", ".join(coverage(store, dataset))
            console.print(f"{dataset}: {covered} have a vector", highlight=False)
        if key is not None and (row := row_of(store, key)) is not None:
            titles = item_titles(store, dataset)
            console.print(neighbours_table(store, row, titles=titles))
            has_key = True
    if key is not None and not has_key:
        levels = ", ".join(str(store.manifest["level"]) for store in stores)
        raise ValueError(f"a level ({levels}) must have the key {key!r}; none has.")


def _show_differences(
    folder: AnyPath, names: tuple[str, str], dataset: AnyPath | None, console: Console
) -> None:
    first, second = (KnowledgeStore.open(item_source_folder(folder, name)) for name in names)
    overlap = source_overlap(first, second, SOURCE_DIM)
    console.print(overlap_table(overlap, names, item_titles(first, dataset)))
    console.print(
        f"{overlap.shared.mean():.1%} of the {overlap.nearest[0].shape[1]} nearest items are the "
        f"same by {' and '.join(names)}, on average over {len(overlap.shared):,} items",
        highlight=False,
    )


def overlap_table(
    overlap: SourceOverlap, names: tuple[str, str], titles: dict[Any, str], count: int = 8
) -> Table:
    """Returns the items whose neighbours by two sources differ most, with the three nearest."""
    table = Table(title="items whose neighbours differ most", show_lines=True)
    for head in ("item", *(f"nearest by {name}" for name in names), "shared"):
        table.add_column(head, overflow="fold", justify="right" if head == "shared" else "left")
    for position in overlap.order[:count]:
        cells = [[overlap.keys[position]], *overlap.nearest_keys(position, 3)]
        lines = ["\n".join(titles.get(key, str(key)) for key in keys) for keys in cells]
        table.add_row(*lines, f"{overlap.shared[position]:.0%}")
    return table


def item_titles(store: KnowledgeStore, dataset: AnyPath | None) -> dict[Any, str]:
    """Returns key -> title of a dataset's items; empty for other levels and without a dataset."""
    if dataset is None or store.manifest["level"] != "item":
        return {}
    title = load_schema(dataset).text.item_title
    if title is None:
        return {}
    items = read_parquet(dataset / "items.parquet", ["item_key", title])
    pairs = zip(items["item_key"].to_pylist(), items[title].to_pylist(), strict=True)
    return {key: f"{key}: {str(title or '')[:SHOWN_CHARS]}" for key, title in pairs}


def store_table(store: KnowledgeStore) -> Table:
    """Returns the manifest without its long lists."""
    table = Table(title=f"{store.path}: {len(store):,} vectors", show_header=False)
    for name, value in store.manifest.items():
        if name not in HIDDEN_MANIFEST_KEYS:
            text = f"{value:,}" if type(value) is int else str(value)
            table.add_row(name, text[:12] if name.endswith("sha256") else text)
    return table


def norm_line(store: KnowledgeStore, sample: int = 10_000) -> str:
    """Returns the norms of a sample of the vectors, as stored and standardised, as text."""
    rows = np.linspace(0, len(store) - 1, min(len(store), sample)).astype(np.int64)
    vectors = read_vectors(store, rows).float().numpy()
    parts = []
    for name, norms in (
        ("as stored", np.linalg.norm(vectors, axis=1)),
        ("standardised", np.linalg.norm(standardised(store, vectors), axis=1)),
    ):
        low, median, high = np.quantile(norms, (0.05, 0.5, 0.95))
        parts.append(f"{name} {median:.1f} ({low:.1f} to {high:.1f})")
    return f"norm, median (5 % to 95 %): {'; '.join(parts)}"


def neighbours_table(
    store: KnowledgeStore, row: int, count: int = 8, titles: dict[Any, str] | None = None
) -> Table:
    """Returns the keys with the nearest vectors by cosine, and the farthest one.

    Vectors of an item source are half-whitened, as a run reads them; others are standardised.
    """
    is_source = store.path.parent.name == ITEM_SOURCES
    projection = item_projection(store, SOURCE_DIM, save=False) if is_source else None
    order, cosines = neighbours(store, row, projection)
    kind = f"{store.path.name}, half-whitened" if is_source else "standardised"
    names = [(titles or {}).get(key, str(key)) for key in store.keys[[row, *order]].tolist()]
    table = Table(title=f"{names[0]}: nearest by {kind} vector")
    table.add_column("key")
    table.add_column("cosine", justify="right")
    for name, cosine in zip(names[1 : count + 1], cosines, strict=False):
        table.add_row(name, f"{cosine:.3f}")
    if len(order) > count:
        table.add_section()
        table.add_row(f"{names[-1]} (farthest)", f"{cosines[-1]:.3f}")
    return table


def _show_run(run: AnyPath, console: Console) -> None:
    folder = local_run(run, weights=False)
    log = load_metric_log(folder)
    committed = sorted((folder / "checkpoints").glob("step-*/COMMIT"))
    newest = committed[-1].parent.name if committed else "none"
    console.print(f"{run}: newest checkpoint {newest}", highlight=False, soft_wrap=True)
    if log.steps.get("valid"):
        console.print(progress_table(log))
    if (folder / RESULTS_FILE).is_file():
        for table in results_tables(load_results(folder)):
            console.print(table)


def progress_table(log: MetricLog) -> Table:
    """Returns the validations of a run by step, the one with the best AUC in bold."""
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
        values = [format_value(metrics.get(name)) for name in names]
        table.add_row(f"{step:,}", *values, style="bold" if step == best else "")
    return table


def _label_text(name: str, options: LabelOptions) -> str:
    """Returns a label with its kind and the rows that have it."""
    facts = [] if options.kind == "binary" else [f"regression, transform {options.transform}"]
    facts += [f"where {options.exists_where} is 1"] if options.exists_where else []
    facts += ["missing in some rows"] if options.optional else []
    return f"{name} ({', '.join(facts)})" if facts else name


def _show_checkpoint(folder: Path, console: Console) -> None:
    """Prints the state and the tensors, after a check that no file has changed."""
    commit = read_commit(folder)
    check_files(folder, commit.crc32, "The checkpoint is damaged: delete its folder.")
    console.print(checkpoint_table(folder, read_index(folder)))
    for name, value in commit.state.items():
        if name != "unlogged":
            console.print(f"{name}: {value}", highlight=False)
    num_files = len(commit.crc32)
    console.print(
        f"{num_files} files, all with the CRC-32 of when they were written", highlight=False
    )


def checkpoint_table(folder: Path, index: Index) -> Table:
    """Returns each weight of the model; optimizer state and metrics only in total."""
    table = Table(title=f"{folder.name}: tensors")
    for head in ("tensor", "dtype", "shape", "pieces", "bytes"):
        is_text = head in ("tensor", "dtype")
        table.add_column(head, justify="left" if is_text else "right", overflow="fold")
    sizes: dict[str, list[int]] = {}
    for name, tensor in index.items():
        kind, _, rest = name.partition(".")
        num_bytes = sum(chunk["bytes"] for chunk in tensor["chunks"])
        if kind == "model":
            shape = " x ".join(f"{length:,}" for length in tensor["size"]) or "1"
            pieces = str(len(tensor["chunks"]))
            table.add_row(rest, tensor["dtype"], shape, pieces, f"{num_bytes:,}")
        else:
            sizes.setdefault(kind, []).append(num_bytes)
    for kind, of_kind in sizes.items():
        title = {"optim": "optimizer state", "metrics": "metrics"}.get(kind, kind)
        table.add_row(f"{title}: {len(of_kind)} tensors", "", "", "", f"{sum(of_kind):,}")
    return table
