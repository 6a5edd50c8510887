"""Bad rows in a dataset folder are refused, or left out without changing the other rows."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ranks import run_ranks
from tiny import replace_column, tiny_dataset, tiny_schema

from msrec.data.loading.behaviour_history import BehaviourHistory
from msrec.data.loading.loader import open_loader
from msrec.data.loading.quarantine import count_reasons, count_rows
from msrec.launch.config.run_config import load_config, save_config
from msrec.launch.distributed import Process
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.training.skipped_rows import quarantine_file
from msrec.launch.training.trainer import Trainer

pytestmark = pytest.mark.slow


def spoil(dataset, column, row, value, split="train", number=0):
    path = sorted((dataset / split).glob("*.parquet"))[number]
    values = pq.read_table(path)[column].to_pylist()
    values[row] = value
    replace_column(path, column, pa.array(values, pq.read_schema(path).field(column).type))
    return path


SPOILT = [
    ("label", 3, None, "nothing may be null"),
    ("label", 5, 2.0, "a label must be 0 or 1"),
    ("price", 97, float("nan"), "a dense value must be finite"),
    ("price", 98, float("inf"), "a dense value must be finite"),
    ("item_id", 200, 61, "an id must be in [0, 61)"),
    ("user_id", 30, -1, "an id must be in [0, 41)"),
    ("genres", 8, [1, 7], "an id must be in [0, 7)"),
    ("genres", 9, None, "nothing may be null"),
    ("genres", 10, [1, None], "nothing may be null"),
    ("scenario", 400, 3, "the scenario must be one of the schema's, 0 to 2"),
    ("timestamp", 401, None, "nothing may be null"),
]
BAD = sorted({row for _, row, _, _ in SPOILT})


@pytest.fixture
def spoilt(tmp_path):
    dataset = tiny_dataset(tmp_path / "spoilt")
    for column, row, value, _ in SPOILT:
        spoil(dataset, column, row, value)
    return dataset


def read(dataset, split="train", **options):
    loader = open_loader(dataset, split, 128, seed=5, **options)
    return list(loader.batches()), loader


def test_bad_rows_keep_their_slots_and_weigh_nothing(tmp_path, spoilt):
    whole, _ = read(tiny_dataset(tmp_path / "whole"))
    left, loader = read(spoilt, faults="skip")
    assert len(whole) == len(left)
    for before, after in zip(whole, left, strict=True):
        is_bad = torch.isin(before.row_id, torch.tensor(BAD))
        assert torch.equal(after.row_id, torch.where(is_bad, -1, before.row_id))
        assert torch.equal(after.weight, torch.where(is_bad, 0.0, before.weight))
        good = after.row_id >= 0
        assert torch.equal(after.label[good], before.label[good])
        assert torch.equal(after.dense[good], before.dense[good])
        assert torch.isfinite(after.dense).all()
        bags = [[bag.tolist() for bag in b.sparse["genres"].to_dense()] for b in (before, after)]
        for at in np.flatnonzero(good.numpy()):
            assert bags[0][at] == bags[1][at]
    groups = loader.reader.quarantine.bad_rows
    assert count_rows(groups) == len(BAD)
    reasons = count_reasons(groups)
    for column, _, _, must in SPOILT:
        same = [s for s in SPOILT if (s[0], s[3]) == (column, must)]
        assert reasons[f"{column}: {must}"] == len(same)


def test_what_is_read_again_is_counted_once(spoilt):
    loader = open_loader(spoilt, "train", 128, faults="skip")
    loader.reader._cache_groups = 1
    for epoch in range(2):
        for _ in loader.batches(epoch):
            pass
    assert count_rows(loader.reader.quarantine.bad_rows) == len(BAD)


def truncate(path):
    """Cut bytes out of the first row group; footer and length stay."""
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)


def drift(path):
    table = pq.read_table(path)
    pq.write_table(table.set_column(3, "user_id", table["user_id"].cast(pa.int64())), path)


@pytest.mark.parametrize(
    ("harm", "rows", "said"),
    [
        (truncate, 96, "the row group must be readable"),
        (drift, 666, "column 'user_id' must be int32; it is int64"),
        (lambda path: replace_column(path, "price", None), 666, "column 'price' is missing"),
    ],
    ids=["truncated group", "another type", "missing column"],
)
def test_what_cannot_be_read_is_left_out_whole(tmp_path, harm, rows, said):
    dataset = tiny_dataset(tmp_path / "data")
    harm(dataset / "train/part-00000.parquet")
    with pytest.raises(ValueError, match=r"part-00000\.parquet"):
        read(dataset)
    batches, loader = read(dataset, faults="skip")
    assert sum(int(batch.weight.sum()) for batch in batches) == 2000 - rows
    [(reason, count)] = count_reasons(loader.reader.quarantine.bad_rows).items()
    assert count == rows
    assert said in reason


def test_a_file_that_disappears_while_an_epoch_runs(tmp_path):
    for faults, left in (("fail", None), ("skip", 2000 - 666)):
        dataset = tiny_dataset(tmp_path / faults)
        loader = open_loader(dataset, "train", 128, prefetch=0, faults=faults)
        (dataset / "train/part-00000.parquet").unlink()
        if left is None:
            with pytest.raises(ValueError, match=r"part-00000\.parquet: row group \d+ could not"):
                list(loader.batches())
        else:
            assert sum(int(batch.weight.sum()) for batch in loader.batches()) == left


def test_an_empty_file_is_no_fault(tmp_path):
    dataset = tiny_dataset(tmp_path / "data")
    table = pq.read_table(dataset / "train/part-00000.parquet")
    pq.write_table(table.slice(0, 0), dataset / "train/part-00002.parquet")
    batches, _ = read(dataset)
    assert sum(int(batch.weight.sum()) for batch in batches) == 2000


def test_a_file_without_a_footer_is_refused_for_nobody_knows_its_rows(tmp_path):
    dataset = tiny_dataset(tmp_path / "data")
    path = dataset / "train/part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    for faults in ("fail", "skip"):
        with pytest.raises(ValueError, match=r"part-00000\.parquet must be a whole Parquet file"):
            read(dataset, faults=faults)


def test_a_bad_row_stands_in_no_history(tmp_path, spoilt):
    schema = tiny_schema()
    whole = BehaviourHistory(tiny_dataset(tmp_path / "whole"), schema, ["user"])
    left = BehaviourHistory(spoilt, schema, ["user"], faults="skip")
    users = np.arange(40)
    seen = {"user", "item", "label", "timestamp"}
    gone = len({row for column, row, _, _ in SPOILT if column in seen})
    assert whole.bags("user", users)[1].sum() - left.bags("user", users)[1].sum() == gone
    rows = np.array([3, 4])
    assert left.has_own("user", rows).tolist() == [False, True]


def run(rank, world_size, config):
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    if rank == 0:
        save_config(config, config.run_dir / "config.yaml")
    losses = Trainer(config, process).fit().losses
    return losses, evaluate(config.run_dir, process, "test", by=["user_history"])


def config_of(dataset, root, *options):
    return load_config(
        None,
        [
            *(f"dataset={dataset}", f"run_root={root}", "trainer.global_batch=96"),
            *("embeddings.dim=8", "trainer.epochs=1", "backbone.name=mmoe", *options),
        ],
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_counts_what_it_left_out_and_keeps_it_aside(tmp_path, spoilt, ranks):
    spoil(spoilt, "price", 7, float("nan"), split="test")
    spoil(spoilt, "label", 7, 3.0, split="test")
    spoil(spoilt, "label", 9, 3.0, split="test", number=1)
    config = config_of(spoilt, tmp_path, "faults=quarantine", "history.of=[user]")
    losses, results = run_ranks(run, ranks, config)[0]
    assert np.isfinite(losses).all()
    assert results.rows == results.metrics.all.rows == 398
    assert results.left_out == {
        "label: a label must be 0 or 1": 2,
        "price: a dense value must be finite": 1,
    }
    kept = pq.read_table(quarantine_file(tmp_path / "default", "train")).to_pylist()
    assert sorted((k["column"], k["row"], k["must"]) for k in kept) == sorted(
        (column, row, must) for column, row, _, must in SPOILT
    )
    assert {k["file"] for k in kept} == {str(spoilt / "train/part-00000.parquet")}
    kept = pq.read_table(quarantine_file(tmp_path / "default", "test")).to_pylist()
    assert {(k["row"], k["column"], k["found"]) for k in kept} == {
        (7, "price", "nan"),
        (7, "label", "3.0"),
        (9, "label", "3.0"),
    }


def test_training_without_bad_rows_is_training_on_the_others(tmp_path, spoilt):
    """The same losses whatever a bad row holds."""
    other = shutil.copytree(spoilt, tmp_path / "other")
    spoil(other, "user_id", 30, 900)
    spoil(other, "label", 5, -3.0)
    one, two = (
        run_ranks(run, 1, config_of(data, tmp_path / data.name, "faults=skip"))[0][0]
        for data in (spoilt, other)
    )
    assert one == two
    assert not (tmp_path / "other/default/quarantine").exists()
