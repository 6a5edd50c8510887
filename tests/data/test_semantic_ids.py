"""Semantic ids: codes against a slow loop, a codebook that stays, columns and schema."""

import numpy as np
import pytest
from llm_data import whole, write_dataset, write_source
from tiny import tiny_schema

from msrec.data.llm.item_source.codebook import Codebook, item_codebook
from msrec.data.llm.item_vectors import load_item_vectors
from msrec.data.llm.store import KnowledgeStore, item_source_folder
from msrec.data.loading.semantic_ids import SemanticIds, with_semantic_ids
from msrec.data.schema import SparseFeature

RNG = np.random.default_rng(1)
RAW = (RNG.normal(size=(30, 9)) * np.linspace(4, 0.5, 9) + 2).astype(np.float16)
RAW[4] = 0  # a text without known terms
VECTORS = RNG.normal(size=(500, 6)).astype(np.float32)


def slow_codes(codebook, vector):
    codes, rest = [], vector.astype(np.float64)
    for centroids in codebook.centroids:
        distances = [((rest - centroid) ** 2).sum() for centroid in centroids]
        codes.append(int(np.argmin(distances)))
        rest = rest - centroids[codes[-1]]
    return codes


def shop(folder, size):
    return write_dataset(folder, [(0, 0, 0, 1.0, 1)], titles=["x"] * size, kinds=[None] * size)


def opened(store):
    return KnowledgeStore.open(item_source_folder(store, "lsa"))


def test_codes_are_those_of_a_slow_loop():
    codebook = Codebook.fit(VECTORS, levels=3, codes=7)
    assert codebook.centroids.shape == (3, 7, 6)
    expected = [slow_codes(codebook, vector) for vector in VECTORS]
    assert codebook.encode(VECTORS).tolist() == expected
    assert len(np.unique(codebook.encode(VECTORS)[:, 0])) == 7


def test_each_level_comes_closer_to_the_vectors():
    codebook = Codebook.fit(VECTORS, levels=4, codes=8)
    codes = codebook.encode(VECTORS)
    sums = np.cumsum([codebook.centroids[n][codes[:, n]] for n in range(4)], axis=0)
    errors = ((VECTORS - sums) ** 2).sum(axis=2).mean(axis=1)
    assert (np.diff(errors) < 0).all()
    assert errors[0] < (VECTORS**2).sum(axis=1).mean()


def test_more_codes_than_vectors_are_refused():
    with pytest.raises(ValueError, match="at most the number of .*; got 8 codes and 5 vectors"):
        Codebook.fit(VECTORS[:5], levels=1, codes=8)


def test_items_have_codes_from_1_and_those_without_a_vector_0(tmp_path):
    store = write_source(tmp_path / "store", range(30), RAW)
    items = load_item_vectors(shop(tmp_path / "d", 33), store, "lsa", 5)
    codebook = item_codebook(opened(store), 5, levels=2, codes=4)
    codes = codebook.item_codes(items)
    assert (codes.shape, codes.dtype) == ((33, 2), np.int32)
    assert np.flatnonzero((codes == 0).any(axis=1)).tolist() == [4, 30, 31, 32]
    expected = [slow_codes(codebook, vector) for vector in whole(items)[items.has]]
    assert (codes[items.has] - 1).tolist() == expected


def test_a_saved_codebook_is_not_fitted_again_and_codes_new_items(tmp_path, monkeypatch):
    store = write_source(tmp_path / "store", range(30), RAW)
    codebook = item_codebook(opened(store), 5, levels=2, codes=4)
    file = item_source_folder(store, "lsa") / "codes-2x4-5.npz"
    assert file.is_file()
    monkeypatch.setattr("sklearn.cluster.MiniBatchKMeans", None)
    again = item_codebook(opened(store), 5, levels=2, codes=4)
    np.testing.assert_array_equal(again.centroids, codebook.centroids)
    # A later store has the fitted files of the earlier one, and more items.
    more = np.concatenate([RAW, RNG.normal(size=(3, 9)).astype(np.float16)])
    later = write_source(tmp_path / "later", range(33), more)
    for name in ("projection-5.npz", "codes-2x4-5.npz"):
        (item_source_folder(later, "lsa") / name).write_bytes((file.parent / name).read_bytes())
    before, after = (
        item_codebook(opened(path), 5, 2, 4).item_codes(
            load_item_vectors(shop(tmp_path / f"d{size}", size), path, "lsa", 5)
        )
        for path, size in ((store, 30), (later, 33))
    )
    np.testing.assert_array_equal(after[:30], before)
    assert (after[30:] > 0).all()


def test_a_row_has_the_codes_of_its_item_and_an_unknown_item_row_0(tmp_path):
    codes = np.array([[3, 1], [0, 0], [2, 2]], np.int32)
    SemanticIds(codes, 3).save(tmp_path / "codes.npz")
    for semantic_ids in (SemanticIds(codes, 3), SemanticIds.load(tmp_path / "codes.npz")):
        columns = {"item": np.array([2, -1, 0, 1]), "price": np.zeros(4)}
        changed = semantic_ids.apply(columns, np.arange(4), 0)
        assert list(columns) == ["item", "price"]
        assert changed["semantic_1"].tolist() == [2, 0, 3, 0]
        assert changed["semantic_2"].tolist() == [2, 0, 1, 0]
        assert changed["semantic_1"].dtype == np.int32


def test_a_schema_gets_a_feature_and_a_table_for_each_level():
    schema = with_semantic_ids(tiny_schema(), levels=2, codes=16)
    names = [feature.name for feature in schema.sparse]
    assert names == ["user_id", "item_id", "genres", "semantic_1", "semantic_2"]
    assert schema.tables == tiny_schema().tables | {"semantic_1": 17, "semantic_2": 17}
    assert not any(feature.multi for feature in schema.sparse[-2:])


def test_a_dataset_with_such_a_feature_is_refused():
    sparse = [*tiny_schema().sparse, SparseFeature(name="semantic_2", table="genre")]
    with pytest.raises(ValueError, match="tiny must have no column or table 'semantic_2'"):
        with_semantic_ids(tiny_schema(sparse=sparse), levels=2, codes=16)
