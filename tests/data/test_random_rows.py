"""Random rows for any tables, and tables scaled down, as for trying a billion-row model."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ranks import run_ranks
from tiny import tiny_store
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from trainings import fit

from msrec.data.loading.id_transforms import table_transforms
from msrec.data.loading.loader import open_loader
from msrec.data.schema import SPLITS, load_schema
from msrec.data.synthetic.random_rows import random_rows
from msrec.launch.build_model import build_model
from msrec.launch.config.run_config import load_config
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.tools.planner.tables import TableLoad, read_tables_file

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
TABLES = [
    TableLoad(name="user_id", rows=1_000_000_000, dim=4),
    TableLoad(name="item_id", rows=2_000_000_000, dim=4, features=2),
    TableLoad(name="words", rows=500_000, dim=4, pooling=6.5),
    TableLoad(name="city", rows=30, dim=4),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "data"
    random_rows(folder, TABLES, rows=5000, users=80, items=90)
    return folder


def test_ids_span_the_tables_and_bags_are_as_long_as_asked(dataset):
    schema = load_schema(dataset)
    assert schema.tables == {table.name: table.rows for table in TABLES}
    assert [f.name for f in schema.sparse if f.table == "item_id"] == ["item_id_0", "item_id_1"]
    for batch in open_loader(
        dataset, "train", 1000
    ).batches():  # which refuses an id that is too large
        lengths = batch.sparse["words"].lengths().double()
        assert abs(lengths.mean().item() - 6.5) < 4 * (6.5 / len(lengths)) ** 0.5
    assert batch.sparse["item_id_0"].values().max() > 1e9
    assert set(batch.sparse["city"].values().tolist()) <= set(range(1, 30))


def test_a_user_has_one_id_and_the_folder_counts_its_rows(dataset):
    table = pq.read_table(dataset / "train")
    users = table.group_by("user").aggregate([("user_id", "count_distinct")])
    assert set(users["user_id_count_distinct"].to_pylist()) == {1}
    counts = load_schema(dataset).counts
    for split in SPLITS:
        written = pq.read_table(dataset / split)
        assert counts["rows"][split]["all"] == written.num_rows
        assert counts["positives"][split]["all"] == sum(written["click"].to_pylist())


def test_the_same_seed_gives_the_same_files(dataset, tmp_path):
    for seed, is_same in ((0, True), (1, False)):
        random_rows(tmp_path / str(seed), TABLES, rows=5000, users=80, items=90, seed=seed)
        again = pq.read_table(tmp_path / str(seed) / "train")
        assert again.equals(pq.read_table(dataset / "train")) == is_same


def test_a_table_that_no_id_of_four_bytes_spans_is_refused(tmp_path):
    big = TableLoad(name="big", rows=3_000_000_000, dim=4)
    with pytest.raises(
        ValueError, match="2 to 2147483647 rows to be drawn from; big has 3000000000"
    ):
        random_rows(tmp_path / "d", [big])
    with pytest.raises(ValueError, match="2 to 2147483647 rows to be drawn from; small has 1"):
        random_rows(tmp_path / "d", [TableLoad(name="small", rows=1, dim=4)])


def test_scaled_tables_are_smaller_and_their_ids_are_folded(dataset):
    schema = load_schema(dataset)
    scaled = schema.scaled(1e-5)
    assert scaled.tables == {"user_id": 10_000, "item_id": 20_000, "words": 1000, "city": 30}
    loaders = [
        open_loader(dataset, "train", 500, transforms=table_transforms(schema, scale, False))
        for scale in (1.0, 1e-5)
    ]
    for whole, small in zip(*(loader.batches() for loader in loaders), strict=True):
        for name in whole.sparse.keys():
            ids, folded = whole.sparse[name].values(), small.sparse[name].values()
            rows = scaled.tables[load_schema(dataset).table_of(name)]
            expected = torch.where(ids == 0, 0, 1 + (ids - 1) % (rows - 1))
            assert torch.equal(folded, ids if name == "city" else expected)
            assert torch.equal(whole.sparse[name].lengths(), small.sparse[name].lengths())


def test_a_scaled_model_has_the_scaled_tables_and_no_history(dataset):
    schema = load_schema(dataset)
    config = load_config(None, [f"dataset={dataset}", "scale=1e-5", "embeddings.dim=4"])
    model = build_model(config, schema, KnowledgeInputs(config, schema))
    bags = next(m for m in model.modules() if isinstance(m, EmbeddingBagCollection))
    rows = {table.name: table.num_embeddings for table in bags.embedding_bag_configs()}
    assert rows == schema.scaled(1e-5).tables
    config = load_config(None, [f"dataset={dataset}", "scale=1e-5", "history.of=[user]"])
    with pytest.raises(ValueError, match="history.of must be empty .* with scale"):
        KnowledgeInputs(config, schema)


def test_a_billion_users_train_on_two_ranks_with_a_hundred_thousandth_of_the_rows(tmp_path):
    tables = read_tables_file(CONFIGS / "billion_tables.yaml")
    assert len(tables) == 300
    assert sorted(table.rows for table in tables)[-2:] == [10**9, 10**9]
    dataset, store = tmp_path / "data", tmp_path / "store"
    random_rows(dataset, tables, rows=1000, users=40, items=40)
    small = [
        f"dataset={dataset}",
        f"run_root={tmp_path / 'runs'}",
        f"llm.store={store}",
        *("scale=1e-5", "embeddings.dim=8", "trainer.global_batch=96", "trainer.log_every=1"),
        *("backbone.expert_dims=[16]", "backbone.tower_dims=[8]"),
    ]
    config = load_config(CONFIGS / "billion.yaml", small)
    assert config.meta.user
    assert config.meta.scenario
    tiny_store(dataset, store, llm=config.llm)
    two = run_ranks(fit, 2, config, timeout_s=120)
    losses = two[0][0]
    assert len(losses) == 9
    assert np.isfinite(losses).all()
    shapes = [
        value.shape
        for of_rank in two
        for name, value in of_rank[2].items()
        if "embedding_bags.user_id." in name
    ]
    assert sum(shape[0] for shape in shapes) == 10_000
