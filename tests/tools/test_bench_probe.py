"""`msrec bench probe` tells a store that knows something of a user from one that knows nothing."""

import json

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score
from tiny import TABLES, tiny_dataset, tiny_rows, tiny_store

from msrec.data.schema import SparseFeature
from msrec.tools.bench.probe import bench_probe

VALID = 3000
FEATURES = [
    SparseFeature(name="user_id", table="user_id"),
    SparseFeature(name="genres", table="genre", multi=True),
    SparseFeature(name="kind", table="kind"),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the bench says of a store with the users' parity, which rules clicks, and of noise."""
    folder = tmp_path_factory.mktemp("probe")
    dataset = with_kinds(folder / "data", valid_rows=VALID)
    rng = np.random.default_rng(0)
    stores = []
    for name in ("parity", "noise"):
        tiny_store(dataset, folder / name)
        file = folder / name / "user" / "vectors.npy"
        vectors = np.load(file)
        vectors[:] = rng.normal(size=vectors.shape)
        if name == "parity":
            vectors += 4 * (np.arange(len(vectors))[:, None] % 2)
        rewrite(folder / name / "user", vectors)
        stores.append(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        bench_probe(dataset, stores, "kind", few=200, users=12)
        told = json.loads((folder / "runs/bench/probe.json").read_text())["auc"]
    return {name.removeprefix(f"{folder}/"): np.mean(found[-1]) for name, found in told.items()}


def with_kinds(folder, **sizes):
    """The tiny data set with a feature that says the item's parity, which rules clicks too."""
    dataset = tiny_dataset(folder, tables=TABLES | {"kind": 4}, sparse=FEATURES, **sizes)
    for file in dataset.glob("*/part-*.parquet"):
        rows = pl.read_parquet(file)
        rows.with_columns(kind=(pl.col("item") % 4).cast(pl.Int32)).write_parquet(file)
    return dataset


def rewrite(folder, vectors):
    """Put other vectors into a store, with their moments and without the old checksums."""
    np.save(folder / "vectors.npy", vectors)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"mean": vectors.mean(0).tolist(), "std": vectors.std(0).tolist()}
    manifest.pop("crc32", None)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def of(told, name):
    return next(auc for key, auc in told.items() if key.startswith(name))


def test_vectors_that_rule_the_clicks_reach_what_the_truth_reaches(told):
    rows = tiny_rows(VALID, seed=1)
    user, item, scenario = (rows[name].to_numpy() for name in ("user", "item", "scenario"))
    truth = 1.5 * (user % 2 == item % 2) + 0.4 * scenario
    best = roc_auc_score(rows["label"].to_numpy(), truth)
    assert of(told, "parity") == pytest.approx(best, abs=0.03)
    assert of(told, "nothing") < best - 0.1


def test_vectors_that_know_nothing_give_nothing(told):
    """They may do harm: what is learned by heart of 24 users is wrong for the others."""
    assert of(told, "noise, ") < of(told, "nothing") + 0.02


@pytest.mark.parametrize("feature", ["genres", "colour"])
def test_a_feature_that_has_no_single_values_is_refused(tmp_path, feature):
    dataset = with_kinds(tmp_path / "data")
    with pytest.raises(ValueError, match=f"--feature must be one of user_id, kind; got .{feature}"):
        bench_probe(dataset, [], feature, few=200, users=12)


def test_a_data_set_without_such_users_is_refused(tmp_path):
    dataset = with_kinds(tmp_path / "data")
    with pytest.raises(ValueError, match="10 or more users with 1 to 1 training rows; it has 0"):
        bench_probe(dataset, [], "kind", few=2, users=12)
