"""Tables and dense memory of a config whose data set and knowledge store do not exist yet."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msrec.data.llm.store import VERSION, VectorSettings, store_settings
from msrec.data.llm.store_writer import StoreWriter
from msrec.data.schema import Schema
from msrec.data.synthetic.random_rows import random_rows
from msrec.launch.config.run_config import RunConfig
from msrec.tools.planner.request import DenseMemory
from msrec.tools.planner.sources.run_memory import PROBE_ROWS, tables_and_dense
from msrec.tools.planner.tables import TableLoad

ENTITIES = 100
"""Users and items of the random rows."""
HIDDEN_SIZES = {"smollm2-135m-instruct": 576, "gemma3-270m": 640, "minilm-l6-v2": 384}
"""Packaged model -> components of its vectors."""


def tables_and_dense_without_data(
    config: RunConfig, listed: Sequence[TableLoad], batch: int, llm_dim: int | None
) -> tuple[list[TableLoad], DenseMemory, list[str]]:
    """Returns the tables, the memory besides them, and sentences on what was assumed.

    The dense part is measured as with data, on random rows and vectors in temporary files. Lookups
    are those of the list.

    Args:
        config: of the run.
        listed: tables of the data set to come.
        batch: rows of a step on one rank.
        llm_dim: components of the LLM's vectors; None takes those of `llm.model`.

    Raises:
        ValueError: the config reads something else that only data has, or a model of unknown size.
    """
    _check_is_known(config)
    with tempfile.TemporaryDirectory() as folder:
        dataset, store = Path(folder) / "data", Path(folder) / "store"
        rows = 2 * PROBE_ROWS
        schema = random_rows(dataset, listed, rows=rows, users=ENTITIES, items=ENTITIES)
        update: dict[str, object] = {"dataset": dataset}
        notes = [
            f"A rank has {batch:,} rows of a step, unless --set or --vary changes it; ids per row "
            "are the pooling of the list.",
            f"The dense part was measured on {PROBE_ROWS:,} random rows.",
        ]
        if config.knowledge_levels:
            dim = llm_dim or _vector_size(config)
            _write_random_store(config, schema, dataset, store, dim)
            update["llm"] = config.llm.model_copy(update={"store": store})
            notes.append(
                f"Vectors of the LLM have {dim} components (llm.model={config.llm.model})."
            )
        tables, dense = tables_and_dense(config.model_copy(update=update), batch)
    notes.append("Host memory of rows that are read is not known without data.")
    pooling = {table.name: table.pooling for table in listed}
    tables = [table.model_copy(update={"pooling": pooling[table.name]}) for table in tables]
    return tables, dense, notes


def _check_is_known(config: RunConfig) -> None:
    """Refuses configs with tables whose size or lookups only a data set tells."""
    parts = {
        "interest.enabled": config.interest.enabled,
        "sequence.encoder": config.sequence.encoder != "none",
        "history.of": bool(config.history.of),
        "llm.sources": bool(config.llm.sources),
    }
    used = [name for name, is_used in parts.items() if is_used]
    if used:
        raise ValueError(
            f"a config with {used[0]} must have its data set to be planned, because items and "
            f"histories are counted in it; {config.dataset} does not exist."
        )


def _vector_size(config: RunConfig) -> int:
    """Returns the components of the vectors that the store of a config will have."""
    llm = config.llm
    if llm.pca is not None:
        return llm.pca
    if llm.model in HIDDEN_SIZES:
        return HIDDEN_SIZES[llm.model]
    file = Path(llm.model) / "config.json"
    if file.is_file() and isinstance(size := json.loads(file.read_text()).get("hidden_size"), int):
        return size
    raise ValueError(
        f"the size of the LLM's vectors must be known without a store; llm.model={llm.model} is "
        "not local. Give --llm-dim."
    )


def _write_random_store(
    config: RunConfig, schema: Schema, dataset: Path, store: Path, dim: int
) -> None:
    """Writes a knowledge store with random vectors for the levels that a run reads."""
    settings = store_settings(dataset, VectorSettings(**config.llm.encoding))
    settings |= {"version": VERSION, "model_sha256": "0" * 64}
    names = [scenario.name for scenario in schema.scenarios]
    keys: dict[str, list[Any]] = {
        "user": list(range(ENTITIES)),
        "item": list(range(ENTITIES)),
        "scenario": names,
    }
    rng = np.random.default_rng(0)
    for level in config.knowledge_levels:
        of_level, count = keys[level], len(keys[level])
        writer = StoreWriter(store / level, settings | {"level": level})
        columns: dict[str, list[Any]] = {
            "index": list(range(count)),
            "key": of_level,
            "tokens": [1] * count,
            "truncated": [False] * count,
            "has_history": [True] * count,
        }
        writer.write(columns, rng.normal(size=(count, dim)).astype(np.float32))
        writer.finish({"keys": count, "no_history": 0, "left_out": 0})
        writer.merge()
