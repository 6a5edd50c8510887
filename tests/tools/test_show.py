"""Tests of `msrec show` on datasets and knowledge stores."""

import io

import numpy as np
import polars as pl
import pytest
from llm_data import part_columns, write_dataset
from rich.console import Console
from tiny import tiny_dataset, tiny_store

from msrec.data.llm.item_vectors import item_projection, item_units
from msrec.data.llm.neighbours import row_of, standardised
from msrec.data.llm.store import KnowledgeStore, item_source_folder
from msrec.data.llm.store_writer import StoreWriter
from msrec.launch.evaluation.coverage import coverage
from msrec.launch.evaluation.source_overlap import source_overlap
from msrec.tools.id_counts import write_id_counts
from msrec.tools.planner.sources.id_counts import read_id_counts
from msrec.tools.show import neighbours_table, norm_line, show

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    dataset = tiny_dataset(folder / "tiny")
    return dataset, tiny_store(dataset, folder / "store")


def printed(*args, **options):
    console = Console(file=io.StringIO(), width=120)
    show(*args, console=console, **options)
    return console.file.getvalue()


def test_a_store_shows_its_manifest_norms_and_coverage(folders):
    dataset, store = folders
    text = printed(store, dataset=dataset)
    assert "39 vectors" in text
    assert "39 of 40 users, " in text
    assert "3 of 3 scenarios have a vector" in text
    assert text.count("norm, median") == 3


def test_coverage_also_counts_rows(folders):
    dataset, store = folders
    users = KnowledgeStore.open(store / "user")
    rows = pl.read_parquet(dataset / "train/*.parquet")["user"]
    assert f"{(rows != 39).mean():.1%} of the train rows" in coverage(users, dataset)


def test_neighbours_are_those_of_a_full_sort_by_cosine(folders):
    store = KnowledgeStore.open(folders[1] / "user")
    vectors = standardised(store, store.vectors.astype(np.float32))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ unit[7]
    expected = [f"u{i}" for i in np.argsort(-likeness) if i != 7]
    table = neighbours_table(store, 7, count=5)
    assert list(table.columns[0].cells) == [*expected[:5], f"{expected[-1]} (farthest)"]
    assert float(list(table.columns[1].cells)[0]) == pytest.approx(np.sort(likeness)[-2], abs=1e-3)
    assert "(farthest)" in printed(folders[1], "u7")


def test_standardised_vectors_have_a_norm_of_the_root_of_their_size(folders):
    line = norm_line(KnowledgeStore.open(folders[1] / "user"))
    assert 2 < float(line.rpartition("standardised ")[2].split()[0]) < 5  # sqrt(12) = 3.5


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory):
    """Sources `a` and `b` of 40 items; they agree about all but the first five."""
    folder = tmp_path_factory.mktemp("sources")
    titles = [f"item number {number}" for number in range(40)]
    row = [(0, 0, 0, 1.0, 1)]
    dataset = write_dataset(folder / "d", row, row, titles=titles, kinds=[None] * 40)
    vectors = np.random.default_rng(0).normal(size=(40, 4))
    for name in ("a", "b"):
        settings = {"version": 2, "model": name, "storage": "float16", "level": "item"}
        writer = StoreWriter(item_source_folder(folder / "store", name), settings)
        writer.write(part_columns(range(40), range(40)), vectors)
        writer.finish({"keys": 40, "no_history": 0, "left_out": 0})
        writer.merge()
        vectors = vectors.copy()
        vectors[:5] *= -1
    return folder / "store", dataset


def test_item_sources_are_shown_with_their_neighbours_and_titles(two_sources):
    store, dataset = two_sources
    text = " ".join(printed(store, "7", dataset).split())
    assert text.count("40 vectors") == 2
    assert "7: item number 7: nearest by a, half-whitened vector" in text
    assert "nearest by b" in text
    assert not list(store.rglob("projection-*"))  # nothing is written


def test_items_whose_neighbours_differ_most_come_first(two_sources):
    store, dataset = two_sources
    a, b = (KnowledgeStore.open(item_source_folder(store, name)) for name in ("a", "b"))
    overlap = source_overlap(a, b, 4, count=5)
    units = item_units(a, item_projection(a, 4, save=False), np.arange(40), 4)
    cosines = units @ units.T - 9 * np.eye(40)
    assert overlap.nearest[0].tolist() == np.argsort(-cosines, axis=1)[:, :5].tolist()
    assert overlap.shared[5:].mean() > overlap.shared[:5].mean()
    assert (np.diff(overlap.shared[overlap.order]) >= 0).all()
    text = printed(store, dataset=dataset, compare=("a", "b"))
    assert f"{overlap.keys[0]}: item number" in text
    assert "of the 10 nearest items are the same by a and b, on average over 40 items" in text
    with pytest.raises(ValueError, match="must name two different sources; got a twice"):
        printed(store, compare=("a", "a"))
    with pytest.raises(ValueError, match="must share more than 40 items; they share 40"):
        source_overlap(a, b, 4, count=40)


def test_an_unknown_key_is_refused(folders):
    with pytest.raises(ValueError, match="a level .user, scenario, item. must have the key 'zoe'"):
        printed(folders[1], "zoe")
    assert row_of(KnowledgeStore.open(folders[1] / "scenario"), "feed") == 1


def test_what_only_a_store_has_is_not_asked_of_a_dataset(folders):
    message = r"--key and --compare must be given with a knowledge store; .* is none"
    with pytest.raises(ValueError, match=message):
        printed(folders[0], "zoe", compare=("a", "b"))


def test_a_folder_of_no_known_kind_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="must be a dataset .*a store .*a run .*or a checkpoint"
    ):
        printed(tmp_path)


def test_counts_of_ids_are_those_of_the_training_rows(folders, tmp_path):
    dataset, _ = folders
    file = tmp_path / "counts.json"
    counts = write_id_counts(dataset, file)
    rows = pl.read_parquet(dataset / "train/*.parquet")
    for name, ids in (("user_id", rows["user_id"]), ("genre", rows["genres"].explode())):
        falling = ids.drop_nulls().value_counts()["count"].sort(descending=True).to_numpy()
        table = counts.tables[name]
        assert (table.lookups, table.distinct) == (falling.sum(), len(falling))
        for top, share in table.points:
            assert share == pytest.approx(falling[:top].sum() / falling.sum())
        assert table.points[-1] == (len(falling), 1.0)
    assert read_id_counts(file)["genre"] == counts.tables["genre"].points
    write_id_counts(dataset, file)  # its own file is replaced, others are not
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json"):
        write_id_counts(dataset, tmp_path / "other.json")
