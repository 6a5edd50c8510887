"""Item vectors of a source: order, length, missing items, controls, a projection that stays."""

import logging

import numpy as np
import pytest
from llm_data import whole, write_dataset, write_source

from msrec.data.llm.compression import fit_half_whitening
from msrec.data.llm.item_vectors import item_units, load_item_vectors
from msrec.data.llm.store import item_source_folder

RNG = np.random.default_rng(0)
RAW = (RNG.normal(size=(30, 9)) * np.linspace(4, 0.5, 9) + 2).astype(np.float16)
RAW[4] = 0  # a text without known terms


def shop(folder, size=30):
    return write_dataset(folder, [(0, 0, 0, 1.0, 1)], titles=["x"] * size, kinds=[None] * size)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return shop(tmp_path_factory.mktemp("data") / "d")


@pytest.fixture
def store(tmp_path):
    return write_source(tmp_path / "store", range(30), RAW)


def test_vectors_are_half_whitened_and_of_length_one(dataset, store):
    loaded = load_item_vectors(dataset, store, "lsa", 5)
    has = np.arange(30) != 4
    scores = fit_half_whitening(RAW[has], 5)(RAW.astype(np.float32))
    expected = scores / np.linalg.norm(scores, axis=1, keepdims=True)
    np.testing.assert_allclose(whole(loaded)[has], expected[has], atol=1e-3)
    assert loaded.has.tolist() == has.tolist()
    assert whole(loaded).dtype == np.float16
    assert not whole(loaded)[4].any()


def test_vectors_are_in_the_order_of_the_dataset(dataset, store, tmp_path):
    order = RNG.permutation(30)
    other = write_source(tmp_path / "other", order.tolist(), RAW[order])
    expected = load_item_vectors(dataset, store, "lsa", 5)
    loaded = load_item_vectors(dataset, other, "lsa", 5)
    np.testing.assert_allclose(whole(loaded), whole(expected), atol=2e-3)
    np.testing.assert_array_equal(loaded.has, expected.has)


def test_items_that_the_store_lacks_have_zeros_and_are_counted(store, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    larger = shop(tmp_path / "larger", 33)
    loaded = load_item_vectors(larger, store, "lsa", 5)
    assert np.flatnonzero(~loaded.has).tolist() == [4, 30, 31, 32]
    assert not whole(loaded)[~loaded.has].any()
    assert "lsa: 4 of 33 items have no vector" in caplog.text


def test_a_source_with_few_components_ends_in_zeros(dataset, store):
    loaded = load_item_vectors(dataset, store, "lsa", 128)
    assert whole(loaded).shape == (30, 128)
    assert not whole(loaded)[:, 9:].any()
    np.testing.assert_allclose(np.linalg.norm(whole(loaded)[loaded.has], axis=1), 1, atol=1e-3)


def test_shuffled_vectors_are_those_of_other_items(dataset, store):
    plain = load_item_vectors(dataset, store, "lsa", 5)
    shuffled = load_item_vectors(dataset, store, "lsa", 5, "shuffled", seed=1)
    assert sorted(map(tuple, whole(shuffled))) == sorted(map(tuple, whole(plain)))
    assert (whole(shuffled) != whole(plain)).any(axis=1).sum() > 20
    np.testing.assert_array_equal(shuffled.has, plain.has)
    again = load_item_vectors(dataset, store, "lsa", 5, "shuffled", seed=1)
    np.testing.assert_array_equal(whole(again), whole(shuffled))
    other = load_item_vectors(dataset, store, "lsa", 5, "shuffled", seed=2)
    assert (whole(other) != whole(shuffled)).any()


def test_random_vectors_have_length_one_and_no_relation_to_the_source(dataset, store):
    random = load_item_vectors(dataset, store, "lsa", 64, "random", seed=1)
    assert random.has.sum() == 29
    np.testing.assert_allclose(np.linalg.norm(whole(random)[random.has], axis=1), 1, atol=1e-3)
    cosines = whole(random)[random.has].astype(np.float32) @ whole(random)[0].astype(np.float32)
    assert np.abs(cosines[1:]).max() < 0.6


@pytest.mark.parametrize("control", [None, "shuffled", "random"])
def test_an_item_has_the_same_vector_in_every_dataset(dataset, store, tmp_path, control):
    smaller = shop(tmp_path / "smaller", 12)
    loaded = load_item_vectors(smaller, store, "lsa", 5, control, 3)
    all_items = load_item_vectors(dataset, store, "lsa", 5, control, 3)
    np.testing.assert_array_equal(whole(loaded), whole(all_items)[:12])


def test_a_saved_projection_is_not_fitted_again(dataset, store, monkeypatch):
    first = load_item_vectors(dataset, store, "lsa", 5)
    saved = item_source_folder(store, "lsa") / "projection-5.npz"
    assert saved.is_file()
    monkeypatch.setattr("msrec.data.llm.item_vectors.fit_half_whitening", None)
    again = load_item_vectors(dataset, store, "lsa", 5)
    np.testing.assert_array_equal(whole(again), whole(first))


def test_a_vector_has_the_same_bits_whichever_others_are_read(dataset, tmp_path, monkeypatch):
    """The last bit of a matrix product depends on its rows, so that whole chunks are projected."""
    projected = []

    def recorded(store, projection, rows, dim):
        projected.append(rows.tolist())
        return item_units(store, projection, rows, dim)

    monkeypatch.setattr("msrec.data.llm.item_vectors.CHUNK_ROWS", 8)
    monkeypatch.setattr("msrec.data.llm.item_vectors.item_units", recorded)
    raw = np.random.default_rng(1).normal(size=(30, 384))
    raw[9] = 0
    items = load_item_vectors(dataset, write_source(tmp_path / "wide", range(30), raw), "lsa", 25)
    expected = whole(items)
    assert not expected[9].any()
    assert not items.has[9]
    for item in range(30):
        np.testing.assert_array_equal(items.rows(np.array([item])), expected[[item]])
    order = RNG.permutation(30)
    np.testing.assert_array_equal(items.rows(order), expected[order])
    read = [(at, vectors) for at, vectors in items.chunks(5, 21)]
    assert [(at.start, at.stop) for at, _ in read] == [(5, 8), (8, 16), (16, 21)]
    for at, vectors in read:
        np.testing.assert_array_equal(vectors, expected[at])
    assert sum(len(vectors) for _, vectors in items.chunks()) == 30
    chunks = [
        [row for row in range(start, min(start + 8, 30)) if row != 9] for start in (0, 8, 16, 24)
    ]
    assert all(rows in chunks for rows in projected)


def test_vectors_are_not_kept_in_memory(dataset, store):
    items = load_item_vectors(dataset, store, "lsa", 5, "shuffled")
    kept = {name: value for name, value in vars(items).items() if isinstance(value, np.ndarray)}
    assert {name: (len(value), value.dtype) for name, value in kept.items()} == {
        "store_rows": (30, np.int8)
    }
    assert "keys" not in vars(items.store)


def test_a_source_of_other_settings_is_refused(dataset, store):
    with pytest.raises(ValueError, match=r"the store has model 'lsa' \(expected 'minilm'\)"):
        load_item_vectors(dataset, store, "lsa", 5, expected={"model": "minilm"})
