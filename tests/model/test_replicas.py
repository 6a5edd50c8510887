"""Groups of ranks with a copy of the tables each, against plain torch with averaged copies."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from plain_tables import CPU, plain_vectors, sharded_vectors
from ranks import run_ranks
from tiny import tiny_dataset

from msrec.model.distributed.replicas import sharding_env
from msrec.model.distributed.table_options import COLUMN_SHARDINGS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    ("sharding", "per_node"),
    [("table_wise", 4), ("row_wise", 4), ("column_wise", 4), ("table_row_wise", 2), ("grid", 1)],
)
def test_two_groups_of_two_ranks_train_like_two_averaged_copies(dataset, sharding, per_node, every):
    shards = 2 if sharding in COLUMN_SHARDINGS else 1
    expected = plain_vectors(dataset, "rowwise_adagrad", 4, shards, groups=2, every=every)
    arguments = (dataset, "rowwise_adagrad", sharding, 4, per_node, 2, every)
    ranks = run_ranks(sharded_vectors, 4, *arguments)
    vectors = torch.cat([torch.from_numpy(part) for part, _ in ranks])
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=1e-5)
    # The copies are the same bit for bit: rank 2 has the shards of rank 0, and 3 those of 1.
    for one, other in ((0, 2), (1, 3)):
        for mine, yours in zip(ranks[one][1], ranks[other][1], strict=True):
            np.testing.assert_array_equal(mine, yours)


def test_copies_differ_until_they_are_averaged(dataset):
    arguments = (dataset, "rowwise_adagrad", "table_wise", 3, 4, 2, 2)
    ranks = run_ranks(sharded_vectors, 4, *arguments)
    pairs = [pair for i in (0, 1) for pair in zip(ranks[i][1], ranks[i + 2][1], strict=True)]
    assert any(not np.array_equal(mine, yours) for mine, yours in pairs)


@pytest.mark.parametrize(("group", "per_node"), [(3, 4), (2, 3)])
def test_groups_that_do_not_fit_ranks_or_nodes_are_refused(monkeypatch, group, per_node):
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    with pytest.raises(ValueError, match=f"must divide the 4 ranks, .* it is {group}"):
        sharding_env(group, per_node, CPU)
