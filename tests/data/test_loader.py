"""Batches hold the values of the Parquet files, every row once; errors name what is wrong."""

import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import replace_column, tiny_dataset

from msrec.data.loading.batch import Batch
from msrec.data.loading.collator import Collator, Window, entity_vectors
from msrec.data.loading.id_transforms import table_transforms
from msrec.data.loading.loader import Loader, RankShare, open_loader
from msrec.data.schema import load_schema


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def broken(tmp_path):
    return tiny_dataset(tmp_path / "broken")


def rows_of(dataset, split="train"):
    return pa.concat_tables([pq.read_table(p) for p in sorted((dataset / split).glob("*.parquet"))])


def test_a_batch_holds_what_its_rows_hold_in_the_files(dataset):
    table = rows_of(dataset)
    for batch in open_loader(dataset, "train", 128, seed=5, window_rows=512).batches(epoch=1):
        real = batch.row_id >= 0
        expected = table.take(batch.row_id[real].numpy())
        for name, found in [
            ("user", batch.user),
            ("scenario", batch.scenario),
            ("label", batch.label[:, 0]),
            ("price", batch.dense[:, 0]),
            ("user_id", batch.sparse["user_id"].values()),
        ]:
            np.testing.assert_array_equal(found[real].numpy(), expected[name].to_numpy(), name)
        bags = [bag.tolist() for bag in batch.sparse["genres"].to_dense()]
        kept = [bag for bag, is_real in zip(bags, real.tolist(), strict=True) if is_real]
        assert kept == expected["genres"].to_pylist()
        assert (batch.weight == real.float()).all()


def test_rows_and_ids_are_counted_on_the_host(dataset):
    batch = next(open_loader(dataset, "train", 60, shuffle=False).batches())
    assert isinstance(batch.scenario_counts, np.ndarray)
    scenarios = torch.bincount(batch.scenario, minlength=3)
    assert batch.scenario_counts.tolist() == scenarios.tolist()
    ids = [bags.values().numel() for bags in batch.sparse.to_dict().values()]
    assert batch.sparse.length_per_key_or_none() == ids
    assert batch.sparse.offset_per_key_or_none() == [0, *np.cumsum(ids)]
    lengths = batch.sparse.lengths().view(3, 60)
    assert lengths.sum(1).tolist() == ids
    known = entity_vectors(batch.user.numpy(), Ones())
    assert known.counts.tolist() == torch.bincount(known.inverse).tolist()


class Ones:
    dim = 2

    def gather(self, ids):
        return torch.ones(len(ids), 2), torch.ones(len(ids))


def test_a_scenario_that_the_schema_lacks_is_refused_when_the_batch_is_made(dataset):
    loader = open_loader(dataset, "train", 60)
    rows = np.arange(3)
    columns = loader.reader.take(rows)
    columns["scenario"] = np.array([0, 7, 1], np.int32)
    window = Window(Collator(load_schema(dataset)), rows[np.newaxis], columns)
    with pytest.raises(
        ValueError, match=r"scenario must be in \[0, 3\); got 7 in row 1 of the batch"
    ):
        window.batch(0)


def test_batches_are_pinned_by_the_thread_that_makes_them(dataset, monkeypatch):
    threads = []

    def pinned(batch):
        threads.append(threading.current_thread().name)
        return batch

    monkeypatch.setattr(Batch, "pin_memory", pinned)
    made = open_loader(dataset, "train", 60)
    pinning = Loader(made.reader, made.order, Collator(load_schema(dataset)), pin=True)
    batches = list(pinning.batches())
    assert threads == ["msrec-loader"] * len(batches)


@pytest.mark.parametrize("prefetch", [0, 4])
def test_an_epoch_on_two_ranks_is_every_row_once_in_batches_of_equal_size(dataset, prefetch):
    seen = []
    for rank in range(2):
        loader = open_loader(dataset, "train", 128, share=RankShare(rank, 2), prefetch=prefetch)
        batches = list(loader.batches())
        assert {len(batch.row_id) for batch in batches} == {64}
        assert len(batches) == len(loader)
        seen += [row for batch in batches for row in batch.row_id.tolist() if row >= 0]
    assert sorted(seen) == list(range(2000))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_resuming_on_another_world_size_continues_the_same_global_batches(dataset, world_size):
    def global_batches(world_size, start):
        ranks = [
            open_loader(dataset, "train", 96, share=RankShare(r, world_size), window_rows=300)
            for r in range(world_size)
        ]
        batches = zip(*(rank.batches(2, start) for rank in ranks), strict=True)
        return [torch.cat([b.row_id for b in parts]).tolist() for parts in batches]

    whole = global_batches(1, 0)
    assert global_batches(world_size, 7) == whole[7:]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_padded_batch_is_the_same_wherever_the_epoch_was_taken_up(dataset, rank):
    def last(start):
        loader = open_loader(dataset, "train", 96, share=RankShare(rank, 2), window_rows=4000)
        return list(loader.batches(1, start))[-1]

    whole, resumed = last(0), last(20)
    assert (whole.row_id < 0).any()
    for name in ("row_id", "user", "item", "scenario", "label", "dense"):
        assert torch.equal(getattr(whole, name), getattr(resumed, name)), name
    assert torch.equal(whole.sparse.values(), resumed.sparse.values())


def test_evaluation_reads_rows_without_shuffling_twice_the_same(dataset):
    loader = open_loader(dataset, "test", 128, shuffle=False)
    first = [b.row_id.tolist() for b in loader.batches(0)]
    assert first == [b.row_id.tolist() for b in loader.batches(9)]


def test_leaving_an_epoch_early_stops_the_thread(dataset):
    import threading

    batches = open_loader(dataset, "train", 64, prefetch=2).batches()
    next(batches)
    batches.close()
    assert not [t for t in threading.enumerate() if t.name == "msrec-loader"]


def read(dataset):
    for _ in open_loader(dataset, "train", 128).batches():
        pass


def changed(dataset, name, change, number=1):
    path = sorted((dataset / "train").glob("*.parquet"))[number]
    values = pq.read_table(path)[name].to_pylist()
    kind = pq.read_schema(path).field(name).type
    change(values)
    replace_column(path, name, pa.array(values, kind))


FAULTS = {
    "null label": (
        "label",
        100,
        None,
        "part-00001.parquet: column 'label', row 100: nothing may be null",
    ),
    "label of 2": ("label", 5, 2.0, "column 'label', row 5: a label must be 0 or 1; found 2.0"),
    "NaN dense": (
        "price",
        97,
        float("nan"),
        "column 'price', row 97: a dense value must be finite",
    ),
    "id too large": (
        "item_id",
        200,
        61,
        r"column 'item_id', row 200: an id must be in \[0, 61\); found 61",
    ),
    "negative id": (
        "user_id",
        3,
        -1,
        r"column 'user_id', row 3: an id must be in \[0, 41\); found -1",
    ),
    "list id too large": (
        "genres",
        8,
        [1, 7],
        r"column 'genres', row 8: an id must be in \[0, 7\)",
    ),
    "unknown scenario": ("scenario", 9, 3, "column 'scenario', row 9: the scenario must be one of"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_about_a_bad_value_names_file_column_and_row(broken, fault):
    name, row, value, message = FAULTS[fault]
    changed(broken, name, lambda values: values.__setitem__(row, value))
    with pytest.raises(ValueError, match=message):
        read(broken)


def test_an_error_about_a_missing_column_names_its_file(broken):
    replace_column(broken / "train" / "part-00000.parquet", "item_id", None)
    with pytest.raises(ValueError, match="part-00000.parquet: column 'item_id' is missing"):
        read(broken)


def test_a_column_of_another_type_is_refused(broken):
    path = broken / "train" / "part-00000.parquet"
    replace_column(path, "item_id", pq.read_table(path)["item_id"].cast(pa.float32()))
    with pytest.raises(ValueError, match="column 'item_id' must be int32; it is float"):
        read(broken)


def test_an_error_about_truncated_parquet_names_its_file(broken):
    path = broken / "train" / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="part-00001.parquet must be a whole Parquet file"):
        read(broken)


def test_an_empty_split_is_refused(broken):
    for path in (broken / "train").glob("*.parquet"):
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ValueError, match="must have at least one row"):
        read(broken)


def test_a_split_without_files_is_refused(broken):
    for path in (broken / "valid").glob("*.parquet"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="valid must hold"):
        open_loader(broken, "valid", 8)


def test_with_tables_per_scenario_an_id_is_moved_by_whole_tables(dataset):
    rows = {"user_id": 41, "item_id": 61, "genres": 7}
    plain = open_loader(dataset, "train", 128).batches()
    own_tables = table_transforms(load_schema(dataset), scale=1, per_scenario=True)
    for batch, own in zip(
        plain, open_loader(dataset, "train", 128, transforms=own_tables).batches(), strict=True
    ):
        for name, size in rows.items():
            bags = batch.sparse[name]
            shift = batch.scenario.repeat_interleave(bags.lengths().long()) * size
            assert torch.equal(own.sparse[name].values().long(), bags.values() + shift)
            assert torch.equal(own.sparse[name].lengths(), bags.lengths())
