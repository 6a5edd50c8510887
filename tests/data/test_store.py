"""Knowledge store: vectors are read as written, and damage is reported by name."""

import json

import numpy as np
import pytest
from llm_data import part_columns

from msrec.data.llm.store import KnowledgeStore
from msrec.data.llm.store_writer import StoreWriter, blocks_of

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
VECTORS = (RNG.normal(size=(7, 5)) * 3 + 10).astype(np.float32)
KEYS = [f"user {number}" for number in (4, 2, 9, 1, 7, 3, 8)]
SETTINGS = {"version": 1, "model": "tiny", "pooling": "mean", "storage": "float32"}


def rows_of(positions, keys=KEYS):
    return part_columns(
        positions,
        [keys[position] for position in positions],
        tokens=[10 + position for position in positions],
        truncated=[position == 0 for position in positions],
        has_history=[position != 1 for position in positions],
    )


def counts(keys):
    return {"keys": keys, "no_history": 1, "left_out": 0, "items_without_text": 4}


def writer(folder, block=0, **changes):
    return StoreWriter(folder, SETTINGS | changes, block)


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "user")


def write(folder, keys=KEYS, **changes):
    one = writer(folder, **changes)
    for positions in ([5, 0, 3], [6, 1], [2, 4]):
        one.write(rows_of(positions, keys), VECTORS[positions])
    one.finish(counts(7))
    one.merge()
    return folder


def test_vectors_come_back_in_the_order_of_the_index(store):
    opened = KnowledgeStore.open(store)
    np.testing.assert_array_equal(opened.vectors, VECTORS)
    assert opened.keys.tolist() == KEYS
    assert len(opened) == 7
    assert isinstance(opened.vectors, np.memmap)
    opened.vectors[:] = 0  # private to this process
    np.testing.assert_array_equal(KnowledgeStore.open(store).vectors, VECTORS)


def test_mean_and_std_are_those_of_numpy(store):
    opened = KnowledgeStore.open(store)
    np.testing.assert_allclose(opened.mean, VECTORS.mean(0), rtol=1e-6)
    np.testing.assert_allclose(opened.std, VECTORS.std(0), rtol=1e-6)
    assert opened.mean.dtype == opened.std.dtype == np.float32


def test_the_manifest_counts(store):
    manifest = KnowledgeStore.open(store).manifest
    expected = {"keys": 7, "no_history": 1, "truncated": 1, "tokens": 91, "items_without_text": 4}
    assert manifest | expected == manifest
    assert manifest["model"] == "tiny"


def test_rows_are_minus_one_where_a_key_is_missing(store):
    opened = KnowledgeStore.open(store)
    wanted = np.array(["user 9", "user", "user 4", "zoe", "user 9"])
    assert opened.rows(wanted).tolist() == [2, -1, 0, -1, 2]
    assert opened.rows(np.array([])).dtype == np.int64


def test_integer_keys_are_found_as_integers(tmp_path):
    keys = [40, 20, 90, 10, 70, 30, 80]
    opened = KnowledgeStore.open(write(tmp_path / "user", keys))
    assert opened.rows(np.array([90, 91, -5, 40], dtype=np.int32)).tolist() == [2, -1, -1, 0]
    with pytest.raises(ValueError, match="keys must be of the store's type"):
        opened.rows(np.array(["90"]))


def test_float16_vectors_are_stored_as_float16(tmp_path):
    opened = KnowledgeStore.open(write(tmp_path / "user", storage="float16"))
    assert opened.vectors.dtype == np.float16
    np.testing.assert_allclose(opened.vectors, VECTORS, rtol=1e-3)


def test_a_check_against_other_settings_names_each_difference(store):
    opened = KnowledgeStore.open(store)
    opened.check({"model": "tiny", "pooling": "mean"})
    with pytest.raises(ValueError, match=r"model 'tiny' \(expected 'big'\); template None"):
        opened.check({"model": "big", "pooling": "mean", "template": "default"})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_not_stored_and_names_its_key(tmp_path, value):
    bad = VECTORS[:2].copy()
    bad[1, 3] = value
    one = writer(tmp_path)
    with pytest.raises(ValueError, match="the vector of 'user 2' is not, as float32"):
        one.write(rows_of([0, 1]), bad)
    assert len(one.done_index()) == 0


def test_a_vector_too_large_for_half_precision_is_an_error(tmp_path):
    with (
        pytest.raises(ValueError, match="as float16: use float32"),
        np.errstate(over="ignore"),
    ):
        writer(tmp_path, storage="float16").write(rows_of([0]), VECTORS[:1] * 1e6)


def test_a_nan_in_a_file_without_checksums_names_its_row_and_key(store):
    vectors = np.load(store / "vectors.npy", mmap_mode="r+")
    vectors[4, 2] = np.nan
    vectors.flush()
    manifest = json.loads((store / "manifest.json").read_text())
    del manifest["crc32"]  # older stores have no checksums
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"vectors.npy: .*row 4 \(key 'user 7'\)"):
        KnowledgeStore.open(store)


@pytest.mark.parametrize("name", ["vectors.npy", "keys.parquet"])
def test_a_truncated_file_is_named(store, name):
    size = (store / name).stat().st_size
    with (store / name).open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(ValueError, match=f"{name} must have {size} bytes .* got {size - 1}"):
        KnowledgeStore.open(store)


@pytest.mark.parametrize("name", ["vectors.npy", "keys.parquet"])
def test_a_flipped_bit_is_found(store, name):
    path = store / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 2
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} must have the CRC-32"):
        KnowledgeStore.open(store)


def test_a_store_without_manifest_is_not_finished(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest.json must exist; .* not there"):
        KnowledgeStore.open(tmp_path / "none")
    writer(tmp_path / "begun").write(rows_of([0]), VECTORS[:1])
    with pytest.raises(FileNotFoundError, match="not finished: run `msrec encode` again"):
        KnowledgeStore.open(tmp_path / "begun")


def test_a_store_of_another_version_is_refused(store):
    manifest = json.loads((store / "manifest.json").read_text()) | {"version": 99}
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="version must be at most 2; got 99"):
        KnowledgeStore.open(store)


def test_a_folder_begun_with_other_settings_is_refused(tmp_path):
    writer(tmp_path).write(rows_of([0]), VECTORS[:1])
    with pytest.raises(ValueError, match=r"begun with pooling 'mean' \(expected 'last'\)"):
        writer(tmp_path, pooling="last")


def test_a_finished_store_without_settings_file_still_refuses_other_settings(store):
    (store / "settings.json").unlink()
    assert writer(store).is_complete
    with pytest.raises(ValueError, match="begun with pooling 'mean'"):
        writer(store, pooling="last")


def test_blocks_are_merged_in_the_order_of_their_keys(tmp_path):
    first, second = writer(tmp_path, 0), writer(tmp_path, 1)
    second.write(rows_of([6, 4]), VECTORS[[6, 4]])
    second.write(rows_of([5]), VECTORS[[5]])
    second.finish(counts(3) | {"work": {"encoded": 3}})
    assert first.done_blocks() == {1}
    first.write(rows_of([3, 1, 2, 0]), VECTORS[[3, 1, 2, 0]])
    assert first.done_index().tolist() == [0, 1, 2, 3]
    first.finish(counts(4) | {"work": {"encoded": 4}})
    first.merge(2)
    opened = KnowledgeStore.open(tmp_path)
    np.testing.assert_array_equal(opened.vectors, VECTORS)
    assert opened.keys.tolist() == KEYS
    assert opened.manifest["no_history"] == 2
    assert "work" not in opened.manifest
    assert not (tmp_path / "parts").exists()


def test_a_deleted_part_is_named_and_its_block_is_encoded_again(tmp_path):
    first, second = writer(tmp_path, 0), writer(tmp_path, 1)
    for one, positions in ((first, [0, 1, 2, 3]), (second, [4, 5, 6])):
        one.write(rows_of(positions), VECTORS[positions])
        one.finish(counts(len(positions)))
    (tmp_path / "parts/000001/part-00000.parquet").unlink()
    with pytest.raises(ValueError, match="000001 must hold 3 keys, each once; found 0"):
        first.merge(2)
    again = writer(tmp_path, 1)
    assert again.done_blocks() == {0}
    again.write(rows_of([5, 4, 6]), VECTORS[[5, 4, 6]])
    again.finish(counts(3))
    again.merge(2)
    np.testing.assert_array_equal(KnowledgeStore.open(tmp_path).vectors, VECTORS)


def test_parts_of_an_older_version_are_refused_and_stay(tmp_path):
    writer(tmp_path)
    old = tmp_path / "parts" / "part-000-00000.parquet"
    old.touch()
    with pytest.raises(ValueError, match="part-000-00000.parquet must be of this version"):
        writer(tmp_path)
    assert old.is_file()


@pytest.mark.parametrize("num_keys", [1, 255, 256, 257, 6040, 10**6, 10**7])
@pytest.mark.parametrize("level", ["user", "item"])
def test_blocks_hold_every_key_once(level, num_keys):
    blocks = blocks_of(level, num_keys)
    assert [block.number for block in blocks] == list(range(len(blocks)))
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    assert blocks[-1].stop == num_keys
    assert all(0 < block.stop - block.start <= 8192 for block in blocks)


def test_a_broken_part_is_named(tmp_path):
    one = writer(tmp_path)
    one.write(rows_of([0, 1]), VECTORS[:2])
    part = tmp_path / "parts/000000/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(ValueError, match="part-00000.parquet must be a readable part"):
        one.done_index()


def test_a_full_disk_loses_no_saved_part(tmp_path, monkeypatch):
    one = writer(tmp_path)
    one.write(rows_of([0, 1]), VECTORS[:2])

    def full(table, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("msrec.data.llm.store_writer.pq.write_table", full)
    with pytest.raises(OSError, match="No space left"):
        one.write(rows_of([2]), VECTORS[2:3])
    assert one.done_index().tolist() == [0, 1]
    assert [file.name for file in one.parts.glob("*/*")] == ["part-00000.parquet"]


def test_a_store_without_any_key_is_an_error(tmp_path):
    one = writer(tmp_path)
    one.finish(counts(0))
    with pytest.raises(ValueError, match="at least 1 key; got no prompt"):
        one.merge()
