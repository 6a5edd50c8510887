"""Compressed stores: standardised, projected and rounded vectors, as a reader gets them."""

import numpy as np
import pytest
import torch
from llm_data import part_columns
from sklearn.decomposition import PCA

from msrec.data.llm.compression import (
    fit_half_whitening,
    fit_projection,
    float_chunks,
    moments,
    to_int8,
)
from msrec.data.llm.knowledge import read_vectors
from msrec.data.llm.store import KnowledgeStore
from msrec.data.llm.store_writer import StoreWriter

RNG = np.random.default_rng(0)
N, H = 300, 12
MIX = RNG.normal(size=(H, H)) * np.linspace(3, 0.2, H)
RAW = (RNG.normal(size=(N, H)) @ MIX + 40).astype(np.float32)
RAW[:, 5] = 7.0  # a constant dimension
STANDARD = (RAW - RAW.mean(0)) / np.where(RAW.std(0) > 0, RAW.std(0), 1)


def write(folder, **settings):
    settings = {"version": 2, "model": "tiny", "storage": "float32"} | settings
    writer = StoreWriter(folder, settings)
    for positions in np.array_split(RNG.permutation(N), 4):
        keys = [f"u{position}" for position in positions]
        writer.write(part_columns(positions, keys), RAW[positions])
    writer.finish({"keys": N, "no_history": 0, "left_out": 0})
    writer.merge()
    return KnowledgeStore.open(folder)


def read(store):
    return read_vectors(store, np.arange(len(store))).float().numpy()


def test_moments_equal_those_of_numpy_for_any_chunk_size():
    mean, std = moments(float_chunks(RAW, chunk_rows=7))
    np.testing.assert_allclose(mean, RAW.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, RAW.astype(np.float64).std(0), rtol=1e-9, atol=1e-9)


def test_int8_is_exact_to_half_a_step_of_its_scale():
    rounded, scale = to_int8(STANDARD.astype(np.float32))
    assert np.abs(rounded).max(axis=1).tolist() == [127] * N
    assert (np.abs(rounded * scale[:, None] - STANDARD) <= scale[:, None] * 0.5001).all()
    assert to_int8(np.zeros((1, 3), np.float32))[0].tolist() == [[0, 0, 0]]


def test_an_int8_store_is_standardised_and_a_quarter_as_large(tmp_path):
    store = write(tmp_path, storage="int8")
    assert store.vectors.dtype == np.int8
    # parts are float16, which alone is exact to 5e-4 of a raw value
    np.testing.assert_allclose(read(store), STANDARD, atol=0.05)
    np.testing.assert_allclose(store.mean, 0, atol=1e-2)
    np.testing.assert_allclose(np.delete(store.std, 5), 1, atol=2e-2)
    assert store.std[5] == 0
    sizes = store.manifest["bytes"]
    assert sizes["vectors.npy"] - 128 == N * H
    cosine = (read(store) * STANDARD).sum(1) / np.linalg.norm(read(store), axis=1)
    assert (cosine / np.linalg.norm(STANDARD, axis=1)).min() > 0.999


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_principal_components_equal_those_of_scikit_learn(tmp_path, storage):
    store = write(tmp_path, pca=4, storage=storage)
    pca = PCA(4).fit(STANDARD)
    expected = pca.transform(STANDARD)
    actual = read(store)
    signs = np.sign((actual * expected).sum(0))
    np.testing.assert_allclose(actual * signs, expected, atol=0.1 if storage == "int8" else 0.02)
    share = pca.explained_variance_ratio_.sum()
    assert store.manifest["explained"] == pytest.approx(share, abs=1e-3)
    assert (store.manifest["hidden_dim"], store.manifest["raw_dim"]) == (4, H)


def test_more_components_than_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="llm.pca must be from 1 to the 12 numbers .*; got 13"):
        write(tmp_path, pca=13)
    assert not (tmp_path / "raw.npy").exists()


def test_components_of_a_sample_explain_nearly_as_much_as_those_of_all(monkeypatch):
    monkeypatch.setattr("msrec.data.llm.compression.SAMPLE_ROWS", 150)
    whole, some = (fit_projection(RAW, 3), fit_projection(RAW, 3))
    assert np.array_equal(whole.components, some.components)  # the sample is drawn by a seed
    np.testing.assert_allclose(whole.components.T @ whole.components, np.eye(3), atol=1e-5)
    variance = np.var(whole(RAW), axis=0).sum()
    assert variance > 0.9 * PCA(3).fit(STANDARD).explained_variance_.sum()


def test_rows_are_read_in_any_order_and_repeatedly(tmp_path):
    store = write(tmp_path, storage="float16")
    rows = np.array([5, 0, 5, N - 1])
    np.testing.assert_allclose(read_vectors(store, rows), RAW[rows], rtol=1e-3)
    assert read_vectors(store, rows).dtype == torch.float16


def test_hashes_of_prompts_and_answers_are_stored_with_the_keys(tmp_path):
    import pyarrow.parquet as pq

    settings = {"version": 2, "storage": "float32", "pooling": "generate"}
    writer = StoreWriter(tmp_path, settings)
    rows = part_columns([1, 0], [8, 9], prompt=["ab", "cd"], text=["likes tea", None])
    writer.write(rows, RAW[:2])
    writer.finish({"keys": 2, "no_history": 0, "left_out": 0})
    writer.merge()
    keys = pq.read_table(tmp_path / "keys.parquet").to_pydict()
    assert keys["prompt"] == ["cd", "ab"]
    assert keys["text"] == [None, "likes tea"]


def test_half_whitening_equals_that_of_a_singular_value_decomposition():
    projection = fit_half_whitening(RAW, 4)
    centred = RAW.astype(np.float64) - RAW.mean(0, dtype=np.float64)
    left, values, axes = np.linalg.svd(centred, full_matrices=False)
    # a score is U s with variance s^2 / N, divided by variance^(1/4)
    expected = (left * values)[:, :4] / (values[:4] ** 2 / N) ** 0.25
    signs = np.sign(axes[np.arange(4), np.abs(axes[:4]).argmax(axis=1)])
    np.testing.assert_allclose(projection(RAW), expected * signs, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(projection(RAW).var(0), np.sqrt(values[:4] ** 2 / N), rtol=1e-3)
    assert projection.explained == pytest.approx((values[:4] ** 2).sum() / (values**2).sum())


def test_half_whitening_leaves_out_components_that_do_not_vary():
    flat = RAW[:, :3] @ RNG.normal(size=(3, H))
    assert fit_half_whitening(flat, 8).components.shape == (H, 3)
    assert fit_half_whitening(RAW[:2], 8).components.shape == (H, 1)
    with pytest.raises(ValueError, match="vectors must differ to be projected; all 5 are equal"):
        fit_half_whitening(np.ones((5, 3), np.float32), 2)
    with pytest.raises(ValueError, match="must have a component and a vector; got 2 .* of 0"):
        fit_half_whitening(np.ones((0, 3), np.float32), 2)
