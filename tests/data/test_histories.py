"""Histories equal a slow search for earlier rows; no row ever sees its own time or later."""

import multiprocessing
import os
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from history_rows import TIMES, histories, rows_of, slow_history, with_ties
from tiny import replace_column, tiny_dataset

from msrec.data.histories import build, user_shares
from msrec.data.histories.build import build_histories
from msrec.data.histories.index import EVENT_ARRAYS, HistoryIndex
from msrec.data.histories.reader import HistoryReader
from msrec.data.io.atomic_files import write_text
from msrec.data.io.outputs import DATASET, check_output
from msrec.data.loading.batch import no_events
from msrec.data.loading.collator import Collator
from msrec.data.loading.loader import Loader, RankShare, open_loader
from msrec.data.schema import SPLITS, SplitRecord, load_schema


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = with_ties(tmp_path_factory.mktemp("histories") / "tiny")
    build_histories(folder)
    return folder


def loader_of(dataset, split, protocol, max_len, share=RankShare(), **options):  # noqa: B008
    reader = HistoryReader(HistoryIndex.open(dataset, protocol), max_len, split)
    loader = open_loader(dataset, split, 96, share=share, **options)
    collator = Collator(load_schema(dataset), sequences=reader)
    return Loader(loader.reader, loader.order, collator, (), share, prefetch=0)


@pytest.mark.parametrize("max_len", [3, 1000])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("protocol", ["stream", "frozen"])
def test_a_history_is_the_newest_strictly_earlier_events(dataset, protocol, split, max_len):
    event_splits = SPLITS if protocol == "stream" else ("train",)
    events = [row for name in event_splits for row in rows_of(dataset, name)]
    rows, count = rows_of(dataset, split), 0
    for batch in loader_of(dataset, split, protocol, max_len).batches():
        candidates = batch.sequence.items.values()[batch.sequence.candidate]
        assert candidates.tolist() == batch.item.tolist()
        for number, history in histories(batch).items():
            if number < 0:
                assert history == []
            else:
                assert history == slow_history(rows[number], events, max_len)
                count += 1
        real = batch.row_id >= 0
        times = [rows[number]["timestamp"] for number in batch.row_id[real].tolist()]
        assert batch.sequence.time_of_row[real].tolist() == times
    assert count == len(rows)


def test_positive_events_are_rows_with_label_one(tmp_path):
    dataset = with_ties(tmp_path / "tiny")
    build_histories(dataset, events="positive")
    events = [row for name in SPLITS for row in rows_of(dataset, name) if row["label"] == 1]
    rows = rows_of(dataset, "test")
    for batch in loader_of(dataset, "test", "stream", 5).batches():
        for number, history in histories(batch).items():
            assert history == (slow_history(rows[number], events, 5) if number >= 0 else [])


@pytest.mark.parametrize("protocol", ["stream", "frozen"])
@pytest.mark.parametrize("planted_in", ["train", "test"])
def test_no_row_sees_an_item_of_the_future(tmp_path, protocol, planted_in):
    """The newest row of each user gets an item that no other row has."""
    dataset = with_ties(tmp_path / "tiny")
    for split in SPLITS:
        for path in sorted((dataset / split).glob("*.parquet")):
            items = pq.read_table(path)["item"].to_numpy() % 59
            replace_column(path, "item", pa.array(items, pa.int32()))
    path = sorted((dataset / planted_in).glob("*.parquet"))[0]
    table = pq.read_table(path)
    item, time = (table[name].to_numpy().copy() for name in ("item", "timestamp"))
    _, newest = np.unique(table["user"].to_numpy(), return_index=True)
    item[newest], time[newest] = 59, TIMES
    replace_column(path, "item", pa.array(item, pa.int32()))
    replace_column(path, "timestamp", pa.array(time, pa.int64()))
    build_histories(dataset)
    for split in SPLITS:
        for batch in loader_of(dataset, split, protocol, 1000).batches():
            assert all(event[0] != 59 for row in histories(batch).values() for event in row)


def test_rows_of_one_time_see_nothing_of_each_other(tmp_path):
    dataset = tiny_dataset(tmp_path / "tiny")
    for path in dataset.glob("*/part-*.parquet"):
        size = pq.read_metadata(path).num_rows
        replace_column(path, "timestamp", pa.array(np.full(size, 7)))
    build_histories(dataset)
    for protocol in ("stream", "frozen"):
        for batch in loader_of(dataset, "test", protocol, 20).batches():
            assert (batch.sequence.scenario == -1).all()


# The order of rows -------------------------------------------------------------------------------


def test_without_timestamps_the_order_of_rows_must_be_declared(tmp_path):
    dataset = tiny_dataset(tmp_path / "tiny", timestamp=None)
    with pytest.raises(ValueError, match="must have timestamps to order histories.*--order rows"):
        build_histories(dataset)
    with pytest.raises(ValueError, match="must not have a random split .* --protocol frozen"):
        build_histories(dataset, order="rows")
    assert not (dataset / "histories").exists()
    schema = build_histories(dataset, ["frozen"], order="rows")
    assert schema.histories["frozen"].order == "rows"


def test_the_order_of_rows_is_train_then_valid_then_test(tmp_path):
    split = SplitRecord(method="user_last", last=1)
    dataset = tiny_dataset(tmp_path / "tiny", timestamp=None, split=split)
    build_histories(dataset, order="rows")
    rows = {name: rows_of(dataset, name) for name in SPLITS}
    for number, row in enumerate(row for name in SPLITS for row in rows[name]):
        row["timestamp"] = number
    for protocol, event_splits in (("stream", SPLITS), ("frozen", ("train",))):
        events = [row for name in event_splits for row in rows[name]]
        for split in SPLITS:
            batch = next(loader_of(dataset, split, protocol, 4).batches())
            for number, history in histories(batch).items():
                assert history == slow_history(rows[split][number], events, 4)
            assert not batch.sequence.time_of_row.any()


# Batches -----------------------------------------------------------------------------------------


def test_bags_are_the_distinct_pairs_of_user_and_end(dataset):
    index = HistoryIndex.open(dataset, "stream")
    for batch in loader_of(dataset, "train", "stream", 20).batches():
        real, bag = batch.row_id >= 0, batch.sequence.bag
        user, end = batch.user[real].tolist(), index.ends["train"][batch.row_id[real]].tolist()
        bag_of = {}
        for pair, number in zip(zip(user, end, strict=True), bag[real].tolist(), strict=True):
            assert bag_of.setdefault(pair, number) == number
        assert len(set(bag_of.values())) == len(bag_of)
        assert len(batch.sequence.scenario) == int(bag.max()) + 1
        first_rows = [bag.tolist().index(number) for number in range(int(bag.max()) + 1)]
        assert first_rows == sorted(first_rows)


def test_two_ranks_have_the_histories_of_one(dataset):
    def all_of(share):
        loader = loader_of(dataset, "train", "stream", 10, share)
        return [pair for batch in loader.batches() for pair in histories(batch).items()]

    halves = [all_of(RankShare(rank, 2)) for rank in range(2)]
    both = sorted(pair for half in halves for pair in half if pair[0] >= 0)
    assert both == sorted(pair for pair in all_of(RankShare()) if pair[0] >= 0)
    assert len(both) == 2000


def test_a_resumed_epoch_has_the_same_batches(dataset):
    whole = list(loader_of(dataset, "train", "stream", 10).batches(epoch=1))
    rest = list(loader_of(dataset, "train", "stream", 10).batches(epoch=1, start=9))
    assert len(rest) == len(whole) - 9
    for before, after in zip(whole[9:], rest, strict=True):
        assert histories(before) == histories(after)
        assert before.sequence.bag.tolist() == after.sequence.bag.tolist()


def test_a_batch_moves_with_its_histories(dataset):
    batch = next(loader_of(dataset, "train", "stream", 10).batches())
    moved = batch.to("cpu")
    assert type(moved.sequence) is type(batch.sequence)
    assert histories(moved) == histories(batch)


def test_without_sequences_a_batch_has_none(dataset):
    batch = next(open_loader(dataset, "train", 96, prefetch=0).batches())
    assert batch.sequence is no_events()
    assert batch.to("cpu").sequence is no_events()


# The index ---------------------------------------------------------------------------------------


def test_arrays_are_memory_mapped_and_read_only(dataset):
    index = HistoryIndex.open(dataset, "frozen")
    arrays = [getattr(index, name) for name in EVENT_ARRAYS]
    for array in (*arrays, index.starts, *index.ends.values()):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
    assert {name: str(getattr(index, name).dtype) for name in EVENT_ARRAYS} == EVENT_ARRAYS
    reader = HistoryReader(index, 20, "train")
    assert np.shares_memory(reader._items, index.items)


def test_with_equal_bags_only_empty_bags_are_added(dataset):
    index = HistoryIndex.open(dataset, "stream")
    rows = np.arange(40, 49)
    user, item, time = rows % 40, rows % 60, np.full(9, 10**6)
    plain, equal = (
        HistoryReader(index, 5, None, equal_bags=each).events(rows, user, item, time)
        for each in (False, True)
    )
    lengths = equal.items.lengths().tolist()
    assert lengths == [1] * (len(plain.items.lengths()) - 1) + [0] * (len(lengths) - sum(lengths))
    assert len(lengths) == 9 * (1 + 5) + 1
    assert torch.equal(equal.items.values(), plain.items.values())
    for name in ("candidate", "bag", "events", "scenario", "label", "time"):
        assert torch.equal(getattr(equal, name), getattr(plain, name))


def test_counts_of_the_record(dataset):
    schema = load_schema(dataset)
    for protocol, num_events in (("stream", 2800), ("frozen", 2000)):
        record = schema.histories[protocol]
        assert (record.num_events, record.num_users) == (num_events, 40)
        batches = list(loader_of(dataset, "test", protocol, 1000).batches())
        lengths = [
            len(history)
            for batch in batches
            for number, history in histories(batch).items()
            if number >= 0
        ]
        found = record.lengths["test"]
        assert (found.rows, found.without_history) == (400, lengths.count(0))
        assert found.median == np.quantile(lengths, 0.5, method="inverted_cdf")
        assert found.p95 == np.quantile(lengths, 0.95, method="inverted_cdf")


def test_excluded_rows_are_no_events_and_have_no_history(tmp_path):
    """The bad value is in a column that histories do not read."""
    dataset = with_ties(tmp_path / "tiny")
    path = sorted((dataset / "train").glob("*.parquet"))[0]
    prices = pq.read_table(path)["price"].to_numpy().copy()
    prices[[5, 90]] = np.nan
    replace_column(path, "price", pa.array(prices))
    build_histories(dataset, faults="skip")
    train = rows_of(dataset, "train")
    events = [row for number, row in enumerate(train) if number not in (5, 90)]
    for batch in loader_of(dataset, "train", "frozen", 9, faults="skip").batches():
        for number, history in histories(batch).items():
            assert history == (slow_history(train[number], events, 9) if number >= 0 else [])


@pytest.fixture
def fresh(tmp_path):
    dataset = with_ties(tmp_path / "tiny", rows=300, valid_rows=60)
    build_histories(dataset, ["stream"])
    return dataset


def refused(dataset, match, error=ValueError):
    with pytest.raises(error, match=match) as raised:
        HistoryIndex.open(dataset, "stream")
    assert "`msrec histories" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_index_names_the_command(fresh, tmp_path):
    with pytest.raises(FileNotFoundError, match="Run `msrec histories .* --protocol frozen`"):
        HistoryIndex.open(fresh, "frozen")
    with pytest.raises(FileNotFoundError, match=r"nowhere/dataset.yaml must exist"):
        HistoryIndex.open(tmp_path / "nowhere", "frozen")


def test_damaged_files_are_refused(fresh):
    folder = fresh / "histories" / "stream"
    path = folder / "items.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    refused(fresh, f"items.npy must have {len(data)} bytes.*; it has {len(data) - 4}")
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(fresh, "items.npy must have the CRC-32 .* The index is damaged")
    HistoryIndex.open(fresh, "stream", verify=False)
    path.unlink()
    refused(fresh, "items.npy must have .* bytes.*; it has 0")
    write_text(folder / "manifest.json", "{}")
    refused(fresh, "manifest.json: events: Field required")


def test_an_index_of_other_rows_is_refused(fresh, tmp_path):
    other = with_ties(tmp_path / "other", rows=290, valid_rows=60)
    (fresh / "histories").rename(other / "histories")
    refused(other, "must belong to the rows of .*train/part-00000.parquet has .* bytes now and had")


def test_a_folder_that_holds_something_else_is_not_replaced(fresh):
    (fresh / "histories" / "frozen").mkdir()
    (fresh / "histories" / "frozen" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"must hold manifest.json to be overwritten"):
        build_histories(fresh, ["frozen"])
    assert (fresh / "histories" / "frozen" / "mine.txt").read_text() == "keep"
    assert list(load_schema(fresh).histories) == ["stream"]


def test_an_index_replaces_an_older_one(fresh):
    build_histories(fresh, ["stream"], events="positive")
    assert HistoryIndex.open(fresh, "stream").manifest.events == "positive"
    assert load_schema(fresh).histories["stream"].events == "positive"
    assert sorted(path.name for path in (fresh / "histories").iterdir()) == ["stream"]


def test_a_remote_dataset_is_refused():
    for function in (lambda: HistoryIndex.open("memory://app", "stream"),):
        with pytest.raises(ValueError, match="must be a folder of this machine"):
            function()


@pytest.mark.parametrize("events", ["all", "positive"])
def test_shares_of_the_users_do_not_change_an_index(tmp_path, monkeypatch, events):
    """Shares of few rows, and a user with more rows than a share."""
    whole, shared = (with_ties(tmp_path / name) for name in ("whole", "shared"))
    build_histories(whole, events=events)
    monkeypatch.setattr(user_shares, "SHARE_ROWS", 150)
    build_histories(shared, events=events)
    for path in sorted((whole / "histories").rglob("*.npy")):
        assert path.read_bytes() == (shared / path.relative_to(whole)).read_bytes(), path.name
    assert load_schema(whole).histories == load_schema(shared).histories
    assert not list(tmp_path.glob(".*"))


def test_without_an_event_no_row_has_a_history(tmp_path):
    dataset = with_ties(tmp_path / "tiny", rows=300, valid_rows=60)
    for path in dataset.glob("*/part-*.parquet"):
        replace_column(path, "label", pa.array([0.0] * pq.read_metadata(path).num_rows, "float"))
    build_histories(dataset, ["stream"], events="positive")
    assert load_schema(dataset).histories["stream"].num_events == 0
    for batch in loader_of(dataset, "test", "stream", 5).batches():
        assert all(history == [] for history in histories(batch).values())


def test_a_killed_call_leaves_nothing_in_the_dataset(tmp_path, monkeypatch):
    """Files in a dataset that are not its own would keep it from being replaced."""
    dataset = with_ties(tmp_path / "tiny", rows=300, valid_rows=60)

    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(build, "_write_index", killed)
    process = multiprocessing.get_context("fork").Process(target=build_histories, args=(dataset,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob(".tiny.rows/rows-*.arrow"))
    check_output(dataset, DATASET, overwrite=True)
    monkeypatch.undo()
    build_histories(dataset)
    assert not (tmp_path / ".tiny.rows").exists()
