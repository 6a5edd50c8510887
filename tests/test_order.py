"""The global order contract."""

import numpy as np
import pytest

from msrec.data.order import GlobalOrder

GROUPS = (100, 37, 1, 250, 64, 90, 130)


def epoch_rows(order, epoch, world_size):
    """(num_batches, global_batch) row ids, the ranks' shares side by side."""
    return np.concatenate(
        [
            np.concatenate([order.rows(epoch, w, r, world_size) for r in range(world_size)], axis=1)
            for w in range(order.num_windows)
        ]
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("global_batch", [24, 48, 7, 1, 1000])
def test_an_epoch_holds_every_row_once_and_pads_only_its_last_batch(shuffle, global_batch):
    order = GlobalOrder(GROUPS, global_batch, seed=3, shuffle=shuffle, window_rows=200)
    rows = epoch_rows(order, epoch=2, world_size=1)
    real = rows[rows >= 0]
    assert sorted(real) == list(range(sum(GROUPS)))
    assert (rows[:-1] >= 0).all()


@pytest.mark.parametrize("world_size", [2, 3, 4, 6])
def test_global_batches_do_not_depend_on_the_world_size(world_size):
    order = GlobalOrder(GROUPS, 48, seed=1, window_rows=96)
    np.testing.assert_array_equal(epoch_rows(order, 0, 1), epoch_rows(order, 0, world_size))


def test_epochs_and_seeds_differ_and_repeat():
    order = GlobalOrder(GROUPS, 24, seed=1)
    first = epoch_rows(order, 0, 1)
    np.testing.assert_array_equal(first, epoch_rows(order, 0, 1))
    assert (first != epoch_rows(order, 1, 1)).mean() > 0.9
    assert (first != epoch_rows(GlobalOrder(GROUPS, 24, seed=2), 0, 1)).mean() > 0.9


def test_rows_of_one_row_group_spread_over_batches():
    """Rows are mixed across row groups: a batch of 64 meets most of 32 groups, not one or two."""
    order = GlobalOrder((128,) * 32, 64, seed=0, window_rows=512)
    groups = epoch_rows(order, 0, 1) // 128
    assert np.mean([len(np.unique(batch)) for batch in groups]) > 20


def test_a_global_batch_that_ranks_cannot_share_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="1000 rows on 3 ranks. Use 999 or 1002"):
        GlobalOrder(GROUPS, 1000).rows(0, 0, 0, 3)


def test_large_row_groups_get_fewer_lanes():
    assert GlobalOrder((1 << 20,) * 4, 4096).num_lanes == 4
    assert GlobalOrder((1 << 10,) * 4, 4096).num_lanes == 64
