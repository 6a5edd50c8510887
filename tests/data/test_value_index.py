"""Positions of values among known ones: the index of many parts agrees with the other one."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from msrec.data.features import value_index
from msrec.data.features.value_index import SortedIndex, ValueIndex


def sorted_index(folder, known, shares=1):
    paths = [folder / str(share) for share in range(shares)]
    for share, path in enumerate(paths):
        SortedIndex.write(path, pl.Series(pl.from_arrow(known)), share, shares)
    return SortedIndex(paths)


@pytest.mark.parametrize(
    "known",
    [
        pa.array([5, None, -3, 2**62, 0]),
        pa.array(["b", "a", None, "", "été"]),
        pa.array([True, False]),
        pl.Series([19000, 1, 0]).cast(pl.Date).to_arrow(),
        pa.array([], pa.int64()),
    ],
)
@pytest.mark.parametrize("shares", [1, 3])
def test_the_sorted_index_finds_what_the_other_index_finds(known, shares, tmp_path, monkeypatch):
    monkeypatch.setattr(value_index, "SLICE_ROWS", 2)
    rng = np.random.default_rng(0)
    unknown = {"bool": [None], "date32[day]": [7]}.get(str(known.type), ["new", 4])
    values = pa.array([*known.to_pylist(), None])
    values = values.cast(known.type).take(rng.integers(0, len(values), 200))
    others = [
        v for v in unknown if v is None or isinstance(v, str) == pa.types.is_string(known.type)
    ]
    if not pa.types.is_boolean(known.type):
        more = pa.array(others[:1], None if known.type != pa.date32() else pa.int32())
        values = pa.concat_arrays([values, more.cast(known.type)])
    found = sorted_index(tmp_path, known, shares).positions(values)
    np.testing.assert_array_equal(found, ValueIndex(known).positions(values))
    assert found.dtype == np.int32


def test_values_that_share_a_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(pl.Expr, "hash", lambda self, *_: (self % 3).cast(pl.UInt64))
    monkeypatch.setattr(pl.Series, "hash", lambda self, *_: (self % 3).cast(pl.UInt64))
    known = pa.array([7, 1, 4, 9, 2, 10])
    index = sorted_index(tmp_path, known)
    values = pa.array([10, 3, 4, 7, None, 13, 2, 1])
    assert index.positions(values).tolist() == [5, -1, 2, 0, -1, -1, 4, 1]


def test_the_sorted_index_refuses_values_of_another_type(tmp_path):
    index = sorted_index(tmp_path, pa.array([1, 2]))
    with pytest.raises(ValueError, match="values must be int64"):
        index.positions(pa.array(["1"]))
