"""Item vectors as initial values of the item table: the formula, ranks, resuming, refusals."""

import zlib

import numpy as np
import polars as pl
import pytest
import torch
from interest_runs import ITEM_DIM, interest_root
from llm_data import whole
from ranks import run_ranks
from trainings import config_of, weights

from msrec.data.llm.item_vectors import load_item_vectors
from msrec.data.schema import load_schema
from msrec.launch.config.run_config import RunConfig
from msrec.launch.distributed import Process
from msrec.launch.training.trainer import Trainer
from msrec.model.embeddings import fill_rows

DIM, SEED, STD = 8, 5, 0.03
OPTIONS = [
    *("llm.sources=[made]", f"llm.item_dim={ITEM_DIM}", "llm.init_items=made"),
    *(f"embeddings.dim={DIM}", f"seed={SEED}", f"embeddings.init_std={STD}", "trainer.epochs=1"),
]
TABLE = "ranker.embeddings.ebc.embedding_bags.item_id.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset of 20 items: the last one has no vector, and one is not in the vocabulary."""
    root = tmp_path_factory.mktemp("init")
    interest_root(root)
    path = root / "data" / "vocabularies" / "item_id.parquet"
    values = pl.read_parquet(path)["value"]
    values.replace(70, 71).to_frame().write_parquet(path)  # the row now is of an item without key
    return root


def started(rank, world_size, config):
    """The item table at the start of a run: this rank's rows."""
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    trainer.resume()
    return item_tables(trainer)


def item_tables(trainer):
    return [rows for name, rows in weights(trainer).items() if name.endswith(TABLE)]


def expected_table(root, num_rows):
    """The table by a loop over its items."""
    table = torch.empty(num_rows, DIM)
    fill_rows(table, "item_id", 0, STD, SEED)
    items = load_item_vectors(root / "data", root / "store", "made", ITEM_DIM)
    vectors = whole(items)
    rng = np.random.default_rng([SEED, zlib.crc32(b"init_items/made")])
    projection = rng.standard_normal((ITEM_DIM, DIM), np.float32)
    keys = pl.read_parquet(root / "data" / "items.parquet")["item_key"].to_list()
    values = pl.read_parquet(root / "data" / "vocabularies" / "item_id.parquet")["value"].to_list()
    changed = 0
    for item, key in enumerate(keys):
        if key in values and items.has[item]:
            row = vectors[item].astype(np.float32) @ projection * STD
            table[values.index(key) + 1] = torch.from_numpy(row)
            changed += 1
    assert changed == 18
    return table.numpy()


@pytest.mark.parametrize(
    ("world_size", "options"),
    [
        (1, []),
        (1, ["embeddings.optimizer=adam"]),
        (2, []),
        (2, ["embeddings.row_wise_from=5"]),
        (2, ["embeddings.optimizer=adam"]),
    ],
)
def test_a_run_starts_from_the_formula_by_any_sharding(root, tmp_path, world_size, options):
    config = config_of(root / "data", tmp_path, *OPTIONS, *options)
    parts = run_ranks(started, world_size, config)
    tables = [rows for part in parts for rows in part]
    num_rows = load_schema(root / "data").tables["item_id"]
    expected = expected_table(root, num_rows)
    if "embeddings.optimizer=adam" in options:
        for table in tables:
            np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-8)
    else:
        np.testing.assert_allclose(np.concatenate(tables), expected, rtol=1e-5, atol=1e-8)
        assert len(tables) == (2 if options else 1)


def trained_and_reopened(rank, world_size, config):
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    trainer = Trainer(config, process)
    trainer.fit()
    again = Trainer(config, process)
    again.resume()
    return [item_tables(each)[0] for each in (trainer, again)]


def test_a_checkpoint_overrides_the_initial_values(root, tmp_path):
    config = config_of(root / "data", tmp_path, *OPTIONS)
    trained, reopened = run_ranks(trained_and_reopened, 1, config)[0]
    np.testing.assert_array_equal(reopened, trained)
    assert np.abs(trained - expected_table(root, len(trained))).max() > STD


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["scale=0.5"], "needs scale=1 .*; got scale=0.5 and per_scenario=false"),
        (["embeddings.per_scenario=true"], "got scale=1 and per_scenario=true"),
    ],
)
def test_tables_without_one_row_for_each_item_are_refused(root, tmp_path, options, message):
    config = config_of(root / "data", tmp_path, *OPTIONS, *options)
    with pytest.raises(AssertionError, match=message):
        run_ranks(started, 1, config)


def test_a_dataset_without_a_vocabulary_of_items_is_refused(root, tmp_path):
    interest_root(tmp_path)
    (tmp_path / "data" / "vocabularies" / "item_id.parquet").unlink()
    config = config_of(tmp_path / "data", tmp_path, *OPTIONS)
    with pytest.raises(AssertionError, match="must have a vocabulary of the feature 'item_id'"):
        run_ranks(started, 1, config)


def test_a_source_that_is_not_listed_is_refused(root):
    with pytest.raises(ValueError, match=r"init_items must be one of sources \(none\); got 'made'"):
        RunConfig(dataset=root, llm={"init_items": "made"})
