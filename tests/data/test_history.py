"""Histories equal a slow sum over each row's other training rows; auxiliary labels."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ranks import run_ranks
from tiny import replace_column, tiny_dataset
from trainings import config_of, fit

from msrec.data.loading.behaviour_history import BehaviourHistory, levels
from msrec.data.loading.collator import Collator
from msrec.data.loading.global_order import GlobalOrder
from msrec.data.loading.loader import Loader, open_loader
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import load_schema
from msrec.model.embeddings import Embeddings

pytestmark = pytest.mark.slow

DIM = 3


def graded(folder, rows=500):
    """A tiny dataset with a second label, and its training rows."""
    dataset = tiny_dataset(folder, rows=rows, valid_rows=80, labels=["label", "liked"])
    rng = np.random.default_rng(7)
    for path in sorted(dataset.glob("*/*.parquet")):
        size = pq.read_metadata(path).num_rows
        table = pq.read_table(path)
        liked = (rng.random(size) < 0.4).astype(np.float32)
        pq.write_table(table.append_column("liked", [liked]), path, row_group_size=96)
    paths = sorted((dataset / "train").glob("*.parquet"))
    return dataset, [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return graded(tmp_path_factory.mktemp("history") / "tiny")


def level(row):
    return int(row["label"] + row["liked"])


def slow_history(train, side, entity, own, max_len, weight):
    """The formula, one row of training after another; `own` is a row id of training, or None."""
    other = "item" if side == "user" else "user"
    rows = [(row["timestamp"], at) for at, row in enumerate(train) if row[side] == entity]
    rows = [at for _, at in sorted(rows)][-(max_len or len(train)) :]
    rows = [at for at in rows if at != own]
    total = np.zeros(DIM)
    for at in rows:
        total += weight[train[at][other] * 3 + level(train[at])]
    return total / np.sqrt(max(len(rows), 1)), len(rows)


def history_loader(dataset, split, batch, history, shuffle=True):
    schema = load_schema(dataset)
    reader = SplitReader(dataset, schema, split)
    order = GlobalOrder(reader.group_rows, batch, shuffle=shuffle)
    return Loader(reader, order, Collator(schema, history=history, is_train=split == "train"))


@pytest.mark.parametrize("max_len", [None, 4])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_history_is_the_sum_over_the_other_training_rows(data, split, max_len):
    dataset, train = data
    schema = load_schema(dataset)
    history = BehaviourHistory(dataset, schema, ["user", "item"], max_len)
    torch.manual_seed(0)
    embeddings = Embeddings(schema, DIM, history.of, device="cpu")
    tables = embeddings.ebc.embedding_bags
    loader = history_loader(dataset, split, 96, history)
    checked = 0
    for batch in loader.batches():
        vectors = embeddings(batch.sparse, batch.past)
        assert vectors.shape[1] == len(schema.sparse) + 2
        for row in range(0, len(batch.row_id), 5):
            number = int(batch.row_id[row])
            if number < 0:
                continue
            own = number if split == "train" else None
            for at, side in enumerate(("user", "item")):
                weight = tables[f"{side}_history"].weight.detach().numpy()
                entity = int(getattr(batch, side)[row])
                expected, count = slow_history(train, side, entity, own, max_len, weight)
                found = vectors[row, len(schema.sparse) + at].detach().numpy()
                np.testing.assert_allclose(found, expected, atol=1e-5)
                assert batch.past.num_others[at, row] == count
                checked += 1
    assert checked > 30


def test_the_features_before_a_history_are_what_they_were(data):
    dataset, _ = data
    schema = load_schema(dataset)
    history = BehaviourHistory(dataset, schema, ["item"])
    with_it, without = (Embeddings(schema, DIM, of, device="cpu") for of in (history.of, ()))
    with_it.load_state_dict(without.state_dict(), strict=False)
    one = next(history_loader(dataset, "train", 96, history).batches())
    two = next(open_loader(dataset, "train", 96).batches())
    expected = without(two.sparse, two.past)
    assert torch.equal(with_it(one.sparse, one.past)[:, : len(schema.sparse)], expected)


def test_a_rows_own_label_does_not_reach_its_score(tmp_path):
    """The one leak that a history could have: change a label, and only other rows may notice."""
    dataset, train = graded(tmp_path / "tiny", rows=120)
    schema = load_schema(dataset)
    torch.manual_seed(0)
    embeddings = Embeddings(schema, DIM, ["user", "item"], device="cpu")

    def histories():
        history = BehaviourHistory(dataset, schema, ["user", "item"])
        batch = next(history_loader(dataset, "train", 120, history, shuffle=False).batches())
        assert batch.row_id.tolist() == list(range(120))
        return embeddings(batch.sparse, batch.past)[:, -2:].detach()

    before = histories()
    path = sorted((dataset / "train").glob("*.parquet"))[0]
    labels = pq.read_table(path)["label"].to_numpy().copy()
    labels[5] = 1 - labels[5]
    replace_column(path, "label", [labels])
    changed = ((histories() - before).abs() > 1e-5).flatten(1).any(dim=1)  # rounding of sums
    assert not changed[5]
    same = [at for at, r in enumerate(train) if r["user"] == train[5]["user"] and at != 5]
    assert changed[same].all()


def test_a_user_without_training_rows_has_a_history_of_zeros(data):
    dataset, train = data
    schema = load_schema(dataset).model_copy(update={"num_users": 45})
    history = BehaviourHistory(dataset, schema, ["user"])
    values, lengths = history.bags("user", np.array([44, train[0]["user"], 44]))
    assert lengths[[0, 2]].tolist() == [0, 0]
    assert len(values) == lengths[1] > 0
    assert not history.has_own("user", np.array([-1])).any()


def test_more_ids_than_int32_are_refused(data):
    schema = load_schema(data[0]).model_copy(update={"num_items": 2**30})
    with pytest.raises(ValueError, match="1073741824 items with 3 levels"):
        levels(schema)


# Labels that are learned but not judged -----------------------------------------------------


def test_other_labels_need_other_labels(tmp_path):
    dataset = tiny_dataset(tmp_path / "tiny")
    config = config_of(dataset, tmp_path, "objective.aux_weight=1")
    with pytest.raises(AssertionError, match="has only 'label'"):
        run_ranks(fit, 1, config)


def test_a_history_and_own_tables_of_scenarios_exclude_each_other(tmp_path):
    dataset = tiny_dataset(tmp_path / "tiny")
    config = config_of(dataset, tmp_path, "history.of=[user]", "embeddings.per_scenario=true")
    with pytest.raises(AssertionError, match="one full-sized table for all scenarios"):
        run_ranks(fit, 1, config)


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_training_on_two_ranks_is_training_on_one(data, tmp_path, sharding):
    options = [
        "backbone.name=deepfm",
        "history.of=[user, item]",
        "objective.aux_weight=1",
        f"embeddings.sharding={{user_history: {sharding}, item_history: {sharding}}}",
        "trainer.max_steps=12",
    ]
    one, two = (
        run_ranks(fit, n, config_of(data[0], tmp_path, *options, f"run_id={sharding}-{n}"))
        for n in (1, 2)
    )
    np.testing.assert_allclose(one[0][0], two[0][0], atol=1e-4)
