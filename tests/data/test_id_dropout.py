"""Rare ids and id dropout: the right rows, the right share, the same on any number of ranks."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import tiny_dataset

from msrec.data.loading.id_transforms import IdDropout, RareIds, rare_ids, require_single_valued
from msrec.data.loading.loader import RankShare, open_loader
from msrec.data.schema import load_schema
from msrec.launch.config.run_config import load_config
from msrec.launch.distributed import Process
from msrec.launch.knowledge_inputs import KnowledgeInputs
from msrec.launch.loaders import build_loader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("unknown") / "tiny")


def unknown(dataset, rare=None, dropout=None, seed=0):
    schema, rare, dropout = load_schema(dataset), rare or {}, dropout or {}
    require_single_valued(schema, rare, dropout)
    return [RareIds(rare_ids(dataset, schema, rare)), IdDropout(dropout, seed)]


def ids_of(dataset, split, made=(), epoch=0, **options):
    """row id -> (user_id, item_id) as a batch has them."""
    found = {}
    for batch in open_loader(dataset, split, 96, transforms=made, **options).batches(epoch):
        user, item = (batch.sparse[name].values().tolist() for name in ("user_id", "item_id"))
        found |= {
            row: ids
            for row, *ids in zip(batch.row_id.tolist(), user, item, strict=True)
            if row >= 0
        }
    return found


def run_ids(dataset, split):
    """As `ids_of`, of a run's loader."""
    dropout = "embeddings.id_dropout={user_id: 0.3, item_id: 0.1}"
    config = load_config(None, [f"dataset={dataset}", dropout])
    process = Process(0, 1, 1, torch.device("cpu"))
    knowledge = KnowledgeInputs(config, load_schema(dataset))
    loader = build_loader(config, split, process, knowledge, 96, shuffle=True)
    found = {}
    for batch in loader.batches():
        user, item = (batch.sparse[name].values().tolist() for name in ("user_id", "item_id"))
        for row, *ids in zip(batch.row_id.tolist(), user, item, strict=True):
            found |= {row: ids} if row >= 0 else {}
    return found


def test_a_run_drops_ids_of_training_rows_only(dataset):
    hidden = [row for row, ids in run_ids(dataset, "train").items() if ids[0] == 0]
    assert 0.26 < len(hidden) / 2000 < 0.34
    assert run_ids(dataset, "test") == ids_of(dataset, "test")


def test_ids_with_too_few_training_rows_are_row_0_in_every_split(dataset):
    train = np.concatenate([pq.read_table(p)["user_id"] for p in sorted(dataset.glob("train/*"))])
    least = int(np.median(np.bincount(train)[1:]))
    known = set(np.flatnonzero(np.bincount(train) >= least))
    assert 5 < len(known) < 35
    for split in ("train", "test"):
        before = ids_of(dataset, split)
        after = ids_of(dataset, split, unknown(dataset, rare={"user_id": least}))
        for row, (user, item) in before.items():
            assert after[row] == [user if user in known else 0, item]


def test_so_many_ids_of_training_rows_are_unknown_others_in_another_epoch(dataset):
    made = unknown(dataset, dropout={"user_id": 0.3, "item_id": 0.1})
    one, two = (ids_of(dataset, "train", made, epoch) for epoch in (0, 1))
    hidden = [{row for row, ids in found.items() if ids[0] == 0} for found in (one, two)]
    for rows in hidden:
        assert 0.26 < len(rows) / 2000 < 0.34  # four standard errors of 0.0102
    assert 0.05 < len(hidden[0] & hidden[1]) / 2000 < 0.13
    items = {row for row, ids in one.items() if ids[1] == 0}
    assert 0.07 < len(items) / 2000 < 0.13
    assert len(items & hidden[0]) < 0.06 * 2000  # drawn apart
    assert run_ids(dataset, "test") == ids_of(dataset, "test")


def test_which_rows_does_not_depend_on_ranks_or_batches_but_on_the_seed(dataset):
    made = unknown(dataset, dropout={"user_id": 0.5})
    whole = ids_of(dataset, "train", made, shuffle=False)
    parts = {}
    for rank in range(2):
        parts |= ids_of(dataset, "train", made, share=RankShare(rank, 2), window_rows=200)
    assert parts == whole
    assert ids_of(dataset, "train", unknown(dataset, dropout={"user_id": 0.5}, seed=1)) != whole


@pytest.mark.parametrize("name", ["genres", "price", "city"])
def test_only_single_valued_sparse_features_have_ids(dataset, name):
    with pytest.raises(ValueError, match=rf"\(user_id, item_id\); got '{name}'"):
        unknown(dataset, rare={name: 2})
