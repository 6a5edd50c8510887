"""Labels of several kinds: from plain tables to a batch, and what is refused."""

import math

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from label_tables import ROWS, raw_columns, raw_folder
from tiny import replace_column

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.split import SplitChoice
from msrec.data.labels import LabelOptions
from msrec.data.loading.loader import open_loader
from msrec.data.schema import SPLITS, load_schema


def converted(tmp_path, **changes):
    raw = read_tables(raw_folder(tmp_path / "raw", **changes))
    write_dataset(raw, tmp_path / "data", SplitChoice(method="time"))
    return tmp_path / "data"


def frame_of(dataset, split):
    return pl.read_parquet(dataset / split / "*.parquet")


def test_columns_are_written_as_they_are_and_missing_labels_as_nan(tmp_path):
    dataset = converted(tmp_path)
    schema, raw = load_schema(dataset), pl.DataFrame(raw_columns())
    assert schema.labels == ["click", "like", "buy", "watch"]
    assert (schema.weights, schema.impression) == (["weight", "like_weight"], "request")
    rows = pl.concat([frame_of(dataset, split) for split in SPLITS]).sort("timestamp")
    for name in ("click", "like", "buy", "watch", "weight", "like_weight"):
        expected = raw[name].cast(pl.Float32).fill_null(math.nan).to_numpy()
        np.testing.assert_array_equal(rows[name].to_numpy(), expected, name)
    assert rows["buy"].is_nan().to_list() == (raw["click"] == 0).to_list()
    # Five rows share each impression, whatever its name.
    groups = rows["request"].to_numpy().reshape(-1, 5)
    assert (groups == groups[:, :1]).all()
    assert len(np.unique(groups)) == ROWS // 5


def test_counts_and_the_scale_are_those_of_the_rows(tmp_path):
    dataset = converted(tmp_path)
    schema = load_schema(dataset)
    for split in SPLITS:
        rows = frame_of(dataset, split)
        like, watch = rows["like"].to_numpy(), rows["watch"].to_numpy()
        counts = schema.counts["labels"]
        has = ~np.isnan(like)
        assert counts["like"][split] == {
            "rows": int(has.sum()),
            "missing": int((~has).sum()),
            "positives": int(like[has].sum()),
        }
        assert counts["watch"][split]["clipped"] == int((watch > 60).sum())
        assert counts["watch"][split]["mean"] == pytest.approx(watch.mean(), rel=1e-6)
    scale = schema.label("watch").scale
    assert scale is not None
    targets = np.log1p(frame_of(dataset, "train")["watch"].to_numpy().clip(0, 60).astype(float))
    assert (scale.mean, scale.std) == (pytest.approx(targets.mean()), pytest.approx(targets.std()))
    assert scale.high == 60


def test_a_batch_has_the_labels_and_the_weights(tmp_path):
    dataset = converted(tmp_path)
    batch = next(open_loader(dataset, "train", 32, shuffle=False).batches())
    rows = frame_of(dataset, "train")[batch.row_id.numpy()]
    labels = rows.select("click", "like", "buy", "watch").to_numpy()
    np.testing.assert_array_equal(batch.label.numpy(), labels)
    np.testing.assert_array_equal(batch.weight.numpy(), rows["weight"].to_numpy())
    weights = batch.label_weight.numpy()
    np.testing.assert_array_equal(weights[:, 1], rows["like_weight"].to_numpy())
    assert (weights[:, [0, 2, 3]] == 1).all()


def test_padding_has_weight_zero_whatever_the_weights(tmp_path):
    dataset = converted(tmp_path)
    *_, last = open_loader(dataset, "valid", 32, shuffle=False).batches()
    assert ((last.weight > 0) == (last.row_id >= 0)).all()
    assert (last.row_id < 0).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"click": [2, *[1] * (ROWS - 1)]}, "column 'click' must be 0 or 1; found 2 in row 0"),
        ({"click": [None, *[1] * (ROWS - 1)]}, "declare the label as `optional: true`"),
        ({"like": [0.5, *[1.0] * (ROWS - 1)]}, "column 'like' must be 0 or 1, or null; found 0.5"),
        ({"buy": [1] * ROWS}, "0 or null where 'click' is not 1; found 1"),
        ({"watch": [-1.0, *[1.0] * (ROWS - 1)]}, "at least 0 and finite, as its transform is log"),
        ({"watch": [math.inf, *[1.0] * (ROWS - 1)]}, "column 'watch' must be at least 0 and"),
        ({"watch": [5.0] * ROWS}, "label 'watch' must differ between training rows; all are 5"),
        ({"watch": ["a"] * ROWS}, "column 'watch' must hold numbers to be a label of kind reg"),
        ({"weight": [-1.0, *[1.0] * (ROWS - 1)]}, "'weight' must be a finite number of at least 0"),
        ({"request": [None, *["r"] * (ROWS - 1)]}, "column 'request' must have no null"),
        ({"request": [0.5] * ROWS}, "column 'request' must hold strings or integers"),
    ],
)
def test_bad_values_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        converted(tmp_path, **changes)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"watch": {"kind": "regression"}}, "the first label must be binary"),
        ({"like": {"optional": True}}, "the first label must be binary and exist in every row"),
        ({"click": "binary", "buy": {"exists_where": "like"}}, r"earlier binary label.*click"),
        ({"click": {"clip": [0, 1]}}, "clip is for labels of kind regression"),
        ({"click": "binary", "watch": {"kind": "regression", "clip": [5, 1]}}, "low < high"),
        ({"click": "ternary"}, "labels.click"),
        ({"click": "binary", "absent": "binary"}, "must have the column 'absent'"),
    ],
)
def test_bad_mappings_are_refused(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        converted(tmp_path, mapping={"labels": labels})


def test_a_label_of_the_mapping_may_be_named_as_the_first(tmp_path):
    folder = raw_folder(tmp_path / "raw", {"labels": {"click": "binary", "seen": "binary"}}, seen=1)
    assert read_tables(folder, label="seen").labels == ("seen", "click")
    with pytest.raises(ValueError, match="--label must be one of the labels"):
        read_tables(folder, label="like")


def test_infinite_labels_of_a_dataset_are_bad_and_missing_ones_are_not(tmp_path):
    dataset = converted(tmp_path)
    path = next((dataset / "train").glob("*.parquet"))
    watch = frame_of(dataset, "train")["watch"].to_numpy().copy()
    watch[3] = np.inf
    replace_column(path, "watch", pa.array(watch))
    with pytest.raises(ValueError, match="row 3: a regression label must be finite; found inf"):
        list(open_loader(dataset, "train", 32).batches())


def test_an_old_schema_still_loads(tmp_path):
    dataset = converted(tmp_path, mapping={}, label=raw_columns()["click"])
    text = (dataset / "dataset.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("weight", "impression"))]
    new = "\n".join(line for line in lines if not line.startswith("label_options"))
    (dataset / "dataset.yaml").write_text(new + "\n")
    schema = load_schema(dataset)
    assert schema.labels == ["label"]
    assert schema.label("label") == LabelOptions()
