"""Stages run each part once; a part whose worker dies is done again, and the others are not."""

from functools import partial

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from part_functions import logged, refuse

from msrec.data.convert.chunk_counts import Sparse, label_counts
from msrec.data.convert.dataset_writer import TABLE_ROWS, PartWriter, write_table
from msrec.data.convert.parts.exchange import read_batches, write_exchange
from msrec.data.convert.parts.part_functions import TextFile, dataset_files, text_part
from msrec.data.convert.parts.stages import Stages
from msrec.data.engines.engines import DEATHS, make_engine
from msrec.data.io.mistakes import is_mistake
from msrec.data.labels import LabelOptions


def test_a_part_whose_worker_dies_is_done_again_and_no_other_is(tmp_path):
    log = tmp_path / "log"
    with make_engine("processes", 2, None) as engine:
        stages = Stages(tmp_path, engine)
        results = stages.run("square", partial(logged, log, 5, 1), range(9))
    assert [result["twice"] for result in results] == [2 * part for part in range(9)]
    assert [int(p.read_text()) for p in stages.files("square", "square.txt", 9)] == [
        part**2 for part in range(9)
    ]
    assert sorted(log.read_text().split()) == sorted("0123456785")
    assert not list((tmp_path / "square").glob(".*/result.json"))


def test_a_part_that_kills_every_worker_ends_the_conversion(tmp_path, workers):
    log = tmp_path / "log"
    with pytest.raises(
        ConnectionError, match=f"a worker must survive part 1; {DEATHS + 1} workers"
    ):
        Stages(tmp_path, workers).run("square", partial(logged, log, 1, 99), range(2))
    assert log.read_text().split().count("1") == DEATHS + 1


def test_the_error_of_a_part_is_raised_and_done_parts_are_kept(tmp_path, workers):
    stages = Stages(tmp_path, workers)
    with pytest.raises(ValueError, match="part 0 is bad"):
        stages.run("bad", refuse, range(1))
    log = tmp_path / "log"
    stages.run("square", partial(logged, log, -1, 0), range(3))
    stages.run("square", partial(logged, log, -1, 0), range(5))
    assert sorted(log.read_text().split()) == list("01234")


def test_a_mistake_that_a_worker_finds_is_a_sentence_and_a_fault_has_its_stack(tmp_path, workers):
    stages, file = Stages(tmp_path, workers), tmp_path / "a.csv"
    file.write_text("n\nx\n")
    with pytest.raises(ValueError, match=r"a.csv: column 'n' must be a whole number") as caught:
        stages.run("text", text_part, [TextFile(file, {"n": int}, "fail")])
    assert is_mistake(caught.value)
    assert caught.value.__cause__ is None
    with pytest.raises(ValueError, match="part 0 is bad") as caught:
        stages.run("bad", refuse, range(1))
    assert not is_mistake(caught.value)
    assert "in refuse" in caught.value.__notes__[0]


def test_an_exchange_keeps_each_row_and_the_order_within_a_share(tmp_path):
    share = np.random.default_rng(0).integers(0, 5, 100)
    write_exchange(tmp_path / "a.arrow", pa.table({"row": np.arange(100)}), share, 6)
    for number in range(6):
        [table] = read_batches([tmp_path / "a.arrow"], number)
        np.testing.assert_array_equal(table["row"].to_numpy(), np.flatnonzero(share == number))


def test_files_made_of_pieces_are_those_of_one_writer(tmp_path):
    rng, schema = np.random.default_rng(0), pa.schema([pa.field("x", pa.int64())])
    sizes = rng.integers(0, 40, (12, 1))
    parts = [pa.table({"x": rng.integers(0, 99, size)}, schema) for size in sizes[:, 0]]
    with PartWriter(tmp_path / "one", schema, 8, 64) as writer:
        for part in parts:
            writer.append(part)
    for file in dataset_files(sizes, file_rows=64):
        with PartWriter(tmp_path / "pieces", schema, 8, 64, file.number) as writer:
            for part, first, rows in file.pieces:
                writer.append(parts[part].slice(first, rows))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == -(-sizes.sum() // 64) > 2
    for name in names:
        assert (tmp_path / "pieces" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_table_that_is_written_by_pieces_is_the_one_that_is_written_at_once(tmp_path):
    keys = pl.int_range(0, TABLE_ROWS + 5, eager=True)
    frame = pl.DataFrame({"user_key": keys, "city": (keys % 1000).cast(pl.String)})
    sizes = []

    def converted(some):
        sizes.append(some.height)
        return some

    write_table(frame, tmp_path / "pieces.parquet", converted)
    table = frame.to_arrow()
    table = table.set_column(1, "city", table["city"].cast(pa.string()))
    pq.write_table(table, tmp_path / "one.parquet", compression="lz4")
    assert sizes == [TABLE_ROWS, 5]
    assert (tmp_path / "pieces.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()


def test_sums_of_labels_do_not_depend_on_the_order_of_the_rows():
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(1000) * 10.0 ** rng.integers(-30, 30, 1000)).astype(np.float32)
    codes, options = np.zeros(1000, np.int8), LabelOptions(kind="regression")
    order = rng.permutation(1000)
    counts = [label_counts(v, codes, options) for v in (values, values[order])]
    assert counts[0] == counts[1]
    exact = sum(
        int(np.float64(v).as_integer_ratio()[0]) * 2**172 // np.float64(v).as_integer_ratio()[1]
        for v in values
    )
    assert counts[0][3][0] == exact


@pytest.mark.parametrize("size", [50, 10**6])
def test_sparse_counts_are_those_of_bincount(size):
    values = np.random.default_rng(0).integers(0, size, 1000)
    at, counts = Sparse.of(values, size)
    dense = np.zeros(size, np.int64)
    dense[at] = counts
    np.testing.assert_array_equal(dense, np.bincount(values, minlength=size))
