"""Tests of `msrec show` on datasets and knowledge stores."""

import io

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from tiny import tiny_dataset, tiny_store

from msrec.data.llm.neighbours import row_of, standardised
from msrec.data.llm.store import KnowledgeStore
from msrec.launch.evaluation.coverage import coverage
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


def test_an_unknown_key_is_refused(folders):
    with pytest.raises(ValueError, match="a level .user, scenario, item. must have the key 'zoe'"):
        printed(folders[1], "zoe")
    assert row_of(KnowledgeStore.open(folders[1] / "scenario"), "feed") == 1


def test_a_folder_of_no_known_kind_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="must be a dataset .*a store .*a run .*or a checkpoint"
    ):
        printed(tmp_path)
