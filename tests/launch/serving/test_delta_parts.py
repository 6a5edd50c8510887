"""Parts of a delta: the file that they make has the bytes of the new one."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from msrec.data.io.parquet_files import read_parquet
from msrec.launch.serving.delta import parts
from msrec.launch.serving.delta.delta_folder import rows_files
from msrec.launch.serving.delta.parts import (
    apply_rows,
    apply_values,
    write_new_values,
    write_rows,
)
from msrec.launch.serving.export_folder import write_values

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (500, 12)).astype(np.uint8)
FLOATS = np.where(RNG.random((500, 6)) < 0.1, np.nan, RNG.normal(size=(500, 6))).astype(np.float16)


def changed(array, rows, more=0):
    """A copy with other values in some rows, and rows appended or (below 0) cut off."""
    array = array.copy()
    array[rows] = array[rows][:, ::-1] if array.ndim > 1 else array[rows] + 1
    if more < 0:
        return array[:more]
    return np.concatenate([array, array[:more]])


CASES = {
    "no row": (BYTES, BYTES, [], 0),
    "first and last row": (BYTES, changed(BYTES, [0, 499]), [0, 499], 0),
    "grown": (BYTES, changed(BYTES, [7], 40), [7], 40),
    "cut": (BYTES, changed(BYTES, [7], -100), [7], 0),
    "NaN": (FLOATS, changed(FLOATS, [3, 200], 5), [3, 200], 5),
    "one dimension": (np.arange(9000), changed(np.arange(9000), [5, 8000], 3), [5, 8000], 3),
}


@pytest.mark.parametrize(("old", "new", "rows", "more"), CASES.values(), ids=CASES)
def test_rows_make_the_new_array(tmp_path, monkeypatch, old, new, rows, more):
    monkeypatch.setattr(parts, "CHUNK_BYTES", 1000)  # several chunks
    np.save(tmp_path / "old.npy", old)
    np.save(tmp_path / "new.npy", new)
    part = write_rows(tmp_path / "old.npy", tmp_path / "new.npy", tmp_path, "tables/a.b.npy")
    assert (part.kind, part.changed, part.new) == ("rows", len(rows), more)
    index, values = (np.load(path) for path in rows_files(tmp_path, "tables/a.b.npy"))
    assert index.tolist() == [*rows, *range(len(old), len(old) + more)]
    assert values.tobytes() == new[index].tobytes()
    apply_rows(tmp_path / "old.npy", tmp_path, "tables/a.b.npy", part, tmp_path / "made.npy")
    assert (tmp_path / "made.npy").read_bytes() == (tmp_path / "new.npy").read_bytes()


@pytest.mark.parametrize(
    "new", [BYTES[:, :8], BYTES.astype(np.int64), BYTES[::-1], BYTES[:0]], ids=str
)
def test_other_arrays_are_whole(tmp_path, new):
    np.save(tmp_path / "old.npy", BYTES)
    np.save(tmp_path / "new.npy", new)
    files = tmp_path / "old.npy", tmp_path / "new.npy"
    assert write_rows(*files, tmp_path, "tables/a.npy") is None
    assert not (tmp_path / "rows").exists()


def write_as_conversion(values, path, scratch):
    """Writes values as an export does those of a dataset, whose files polars has written."""
    pl.DataFrame({"value": values}).write_parquet(scratch)
    write_values(read_parquet(scratch, ["value"]), path)


@pytest.mark.parametrize(
    ("old", "more"),
    [(["b", "a", "é"], ["c"]), ([3, 1], [7, 2**40]), (["a"], []), ([], ["x"]), ([5] * 9, [1] * 9)],
)
def test_values_make_the_new_file(tmp_path, old, more):
    scratch, files = tmp_path / "scratch", (tmp_path / "old", tmp_path / "new")
    kind = pl.Series([*old, *more]).dtype
    for values, file in zip((old, [*old, *more]), files, strict=True):
        write_as_conversion(pl.Series(values, dtype=kind), file, scratch)
    part = write_new_values(*files, tmp_path, "users.parquet")
    assert (part.kind, part.new) == ("values", len(more))
    assert pa.parquet.read_table(tmp_path / "values/users.parquet")[0].to_pylist() == more
    apply_values(files[0], tmp_path, "users.parquet", tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("new", [["a", "c", "b"], ["a"], [1, 2, 3]])
def test_other_values_are_whole(tmp_path, new):
    write_as_conversion(["a", "b"], tmp_path / "old", tmp_path / "scratch")
    write_as_conversion(new, tmp_path / "new", tmp_path / "scratch")
    assert write_new_values(tmp_path / "old", tmp_path / "new", tmp_path, "users.parquet") is None
    assert not (tmp_path / "values").exists()
