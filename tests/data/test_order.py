"""The global order contract."""

import numpy as np
import pytest
from scipy import stats

from msrec.data.loading.global_order import GlobalOrder

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


# Does it mix? --------------------------------------------------------------------------------


def batch_of(order, epoch):
    """Row id -> number of its global batch in an epoch."""
    batches = np.concatenate([order.rows(epoch, w) for w in range(order.num_windows)])
    found = np.empty(order.num_rows, np.int64)
    for number, rows in enumerate(batches):
        found[rows[rows >= 0]] = number
    return found


def test_over_epochs_a_row_is_in_every_batch_equally_often():
    order = GlobalOrder((50,) * 16, global_batch=40, seed=3, window_rows=160)
    seen = np.stack([batch_of(order, epoch) for epoch in range(400)])
    for row in (0, 137, 799):
        counts = np.bincount(seen[:, row], minlength=order.num_batches)
        assert stats.chisquare(counts).pvalue > 1e-3


def test_rows_of_one_row_group_are_apart_by_up_to_a_window_and_in_no_order():
    """A row group is some lanes' arcs; within a lane's window the order is a random one."""
    order = GlobalOrder((256,) * 64, global_batch=64, seed=1, window_rows=64 * 32)
    assert (order.num_lanes, order.window_batches, order.num_batches) == (64, 32, 256)
    correlations = []
    for epoch in range(8):
        batch = batch_of(order, epoch).reshape(64, 256)  # row group, row in it
        for group in batch:
            place = (group // order.window_batches, group % order.window_batches)
            # The group's 256 rows fill one lane's 8 windows (or the ends of two lanes').
            assert len(np.unique(place[0])) == 8
            for window in range(8):
                inside = np.flatnonzero(place[0] == window)
                assert len(inside) <= 64
                correlations.append(stats.spearmanr(inside, place[1][inside]).statistic)
    mean = np.mean(correlations)
    assert abs(mean) < 4 * np.std(correlations) / np.sqrt(len(correlations))
    assert np.mean(np.abs(correlations)) < 0.25  # of 32 rows in no order it is about .14


def test_a_batch_has_a_row_of_nearly_every_lane_and_so_of_distant_row_groups():
    order = GlobalOrder((256,) * 64, global_batch=64, seed=1, window_rows=64 * 32)
    groups = [np.unique(rows // 256) for rows in order.rows(0, 3)]
    assert min(len(of_batch) for of_batch in groups) >= 60
