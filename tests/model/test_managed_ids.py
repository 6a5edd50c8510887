"""Maps of managed ids against a slow map in Python, and resume of a map."""

import copy

import pytest
import torch
from torchrec.distributed.types import ShardingPlan
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from msrec.model.distributed.managed_tables import check_managed
from msrec.model.managed.managed_ids import POLICIES, IdMap, ManagedIds
from msrec.model.managed.managed_options import ManagedOptions

ROWS, INTERVAL, STEP_ROWS = 8, 3, 6


def options(eviction="lfu"):
    return ManagedOptions(eviction, INTERVAL, STEP_ROWS, dim=4, init_std=0.1, seed=0)


class SlowMap:
    """The rules of the map, one id after the other."""

    def __init__(self, eviction):
        self.eviction, self.step, self.recorded = eviction, 0, []
        self.row_of, self.count, self.last = {}, {}, {}
        self.free = list(range(1, ROWS))

    def record(self, ids):
        self.step += 1
        self.recorded += [(i, self.step) for i in ids if i]
        if self.step % INTERVAL:
            return None
        recorded, self.recorded = self.recorded, []
        counts = {i: sum(j == i for j, _ in recorded) for i, _ in recorded}
        self.last |= dict(recorded)
        for i, n in counts.items():
            self.count[i] = self.count.get(i, 0) + n
        # Ids with rows come first in a tie, by number; then new ones, the most frequent first.
        new = sorted((i for i in counts if i not in self.row_of), key=lambda i: (-counts[i], i))
        ranked = sorted([*sorted(self.row_of), *new], key=lambda i: -self.score(i))
        kept = ranked[: ROWS - 1]
        for i in [i for i in self.row_of if i not in kept]:
            self.free.append(self.row_of.pop(i))
        for i in [i for i in self.count if i not in kept]:
            del self.count[i], self.last[i]
        self.newcomers = {i for i in kept if i not in self.row_of}
        return self.newcomers

    def adopt(self, of_map):
        """Takes the rows of new ids: which free row an id gets is not part of the rules."""
        for i in self.newcomers:
            row = int(of_map(torch.tensor([i])))
            self.free.remove(row)
            self.row_of[i] = row

    def score(self, i):
        age = self.step - self.last[i] + 1
        return {"lfu": self.count[i], "lru": -age, "distance": self.count[i] / age}[self.eviction]


def steps(number, seed=0):
    """Batches of ids whose range drifts, some of them missing."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(number):
        ids = torch.randint(1, 10, (STEP_ROWS,), generator=generator) + step // 4
        yield ids * (torch.rand(STEP_ROWS, generator=generator) > 0.1)


@pytest.mark.parametrize("eviction", POLICIES)
def test_a_map_follows_the_rules_of_its_eviction(eviction):
    of_map, slow = IdMap(ROWS, options(eviction)), SlowMap(eviction)
    inserted = evicted = 0
    for ids in steps(60):
        before = set(slow.row_of)
        of_map.record(ids)
        rows, new = of_map.update(), slow.record(ids.tolist())
        assert (rows is None) == (new is None)
        if rows is None:
            continue
        slow.adopt(of_map)
        assert sorted(rows.tolist()) == sorted(slow.row_of[i] for i in new)
        every_id = torch.arange(1, 40)
        expected = [slow.row_of.get(i, 0) for i in every_id.tolist()]
        assert of_map(every_id).tolist() == expected
        inserted += len(new)
        evicted += len(before - set(slow.row_of))
        assert of_map.counts() == {
            "inserted": inserted,
            "evicted": evicted,
            "with_row": len(slow.row_of),
        }
    assert evicted >= 5
    known, rows = of_map.ids_and_rows()
    assert dict(zip(known.tolist(), rows.tolist(), strict=True)) == slow.row_of


@pytest.mark.parametrize("eviction", POLICIES)
@pytest.mark.parametrize("step", [4, 6])  # between two updates, and after one
def test_a_restored_map_goes_on_as_the_map_that_was_saved(eviction, step):
    whole, first = IdMap(ROWS, options(eviction)), IdMap(ROWS, options(eviction))
    resumed = IdMap(ROWS, options(eviction))
    for number, ids in enumerate(steps(30)):
        if number == step:
            resumed.load_state_dict(copy.deepcopy(first.state_dict()))
        for of_map in (whole, first if number < step else resumed):
            of_map.record(ids)
            of_map.update()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_map_does_not_depend_on_the_order_of_the_rows_of_a_step():
    maps = [IdMap(ROWS, options("lfu")) for _ in range(2)]
    for ids in steps(30):
        for of_map, each in zip(maps, (ids, ids.flip(0)), strict=True):
            of_map.record(each)
            of_map.update()
    assert all(map(torch.equal, maps[0].ids_and_rows(), maps[1].ids_and_rows()))


def test_only_training_records_ids_and_unknown_ids_have_row_0():
    managed = ManagedIds({"user_id": ROWS}, ["user_id"], options())
    sparse = KeyedJaggedTensor(["genre"], torch.tensor([3, 4]), lengths=torch.tensor([2, 0]))
    managed.maps[0].record(torch.tensor([70, 70, 71]))
    for _ in range(INTERVAL - 1):
        managed.maps[0].record(torch.tensor([0]))
    managed.maps[0].update()
    managed.eval()
    both = managed(sparse, torch.tensor([[71, 5]]))
    row = int(managed.maps[0](torch.tensor(71)))
    assert row > 0
    assert both.to_dict()["user_id"].values().tolist() == [row, 0]
    assert both.to_dict()["genre"].values().tolist() == [3, 4]
    assert managed.seen is None
    managed.train()
    managed(sparse, torch.tensor([[71, 5]]))
    assert managed.seen.tolist() == [[71, 5]]


def test_copies_of_managed_tables_are_refused():
    managed = ManagedIds({"user_id": 5}, ["user_id"], options("lfu"))
    with pytest.raises(ValueError, match="group_ranks must be null for .* it is 2"):
        check_managed(managed, ShardingPlan({}), group=2)
    check_managed(managed, ShardingPlan({}), group=None)
