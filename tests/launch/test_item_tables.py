"""Frozen tables of item vectors: each rank reads and holds the rows of its shards."""

import numpy as np
import pytest
import torch
from interest_runs import ITEM_DIM, SOURCES, interest_config, interest_root
from llm_data import whole
from ranks import run_ranks
from trainings import weights

from msrec.data.llm.item_vectors import ItemVectors, load_item_vectors
from msrec.launch.distributed import Process
from msrec.launch.training.trainer import Trainer
from msrec.model.frozen_items import item_table


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables")
    interest_root(root)
    return root


def started(rank, world_size, config):
    """This rank's rows of each frozen table, and the slices of items that it read."""
    read, chunks = [], ItemVectors.chunks

    def recorded(items, first=0, last=None):
        read.append((first, last))
        return chunks(items, first, last)

    ItemVectors.chunks = recorded
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    names = {item_table(source): source for source in SOURCES}
    tables = {
        names[key.split(".")[-2]]: value
        for key, value in weights(trainer).items()
        if "ranker.items." in key
    }
    return tables, read


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_tables_have_the_vectors_and_ranks_read_only_their_rows(
    root, monkeypatch, world_size, sharding
):
    """Chunks of 7 items, so that the shards of 10 begin and end within chunks."""
    monkeypatch.setattr("msrec.data.llm.item_vectors.CHUNK_ROWS", 7)
    names = ", ".join(f"'{item_table(source)}': {sharding}" for source in SOURCES)
    config = interest_config(root, "tables", f"embeddings.sharding={{{names}}}")
    ranks = run_ranks(started, world_size, config)
    for source in SOURCES:
        expected = whole(load_item_vectors(root / "data", root / "store", source, ITEM_DIM))
        parts = [tables[source] for tables, _ in ranks if source in tables]
        np.testing.assert_array_equal(np.concatenate(parts), expected)
        assert len(parts) == (2 if sharding == "row_wise" and world_size == 2 else 1)
    if sharding == "row_wise" and world_size == 2:
        assert [read for _, read in ranks] == [[(0, 10)] * 2, [(10, 20)] * 2]
