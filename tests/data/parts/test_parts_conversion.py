"""A conversion in parts writes the dataset that the conversion in one process writes."""

import json
import shutil
import time
from datetime import date

import polars as pl
import psutil
import pytest
from part_tables import ITEMS, USERS, differences, write_raw

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.parts import job, merged_counts
from msrec.data.convert.parts.conversion import MARKER, PartOptions, write_dataset_in_parts
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources.plain.table_rows import TableRows
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.split import SplitChoice
from msrec.data.engines.engines import make_engine
from msrec.data.features.hashed_values import Hashed, Managed
from msrec.data.features.vocabulary import Frequent
from msrec.data.schema import load_schema
from msrec.tools.cli.main import is_mistake

CHOICES = {
    "random": SplitChoice("random", seed=3),
    "time": SplitChoice("time"),
    "user_last": SplitChoice("user_last"),
    "given": SplitChoice("given", column="part"),
}


@pytest.fixture(scope="module")
def whole(raw_tables, tmp_path_factory):
    """Split -> dataset of one process."""
    folder = tmp_path_factory.mktemp("whole")
    for name, choice in CHOICES.items():
        write_dataset(read_tables(raw_tables), folder / name, choice)
    return folder


def in_parts(raw, out, engine, choice, part_rows=700, **settings):
    options = PartOptions(engine, out.with_name(f"{out.name}.parts"), part_rows)
    write_dataset_in_parts(raw, TableRows.declared(raw), out, options, choice, **settings)


@pytest.mark.parametrize("split", CHOICES)
def test_parts_make_the_same_dataset_for_every_split(raw_tables, whole, workers, tmp_path, split):
    in_parts(raw_tables, tmp_path / "out", workers, CHOICES[split])
    assert differences(tmp_path / "out", whole / split) == []
    assert not (tmp_path / "out.parts").exists()


@pytest.mark.parametrize(("count", "part_rows"), [(1, 10_000), (3, 150)])
def test_any_number_of_workers_and_rows_of_a_part_make_the_same_dataset(
    raw_tables, whole, tmp_path, count, part_rows
):
    with make_engine("processes", count, None) as engine:
        in_parts(raw_tables, tmp_path / "out", engine, CHOICES["time"], part_rows)
    assert differences(tmp_path / "out", whole / "time") == []


def test_users_and_items_of_all_types_are_read_in_parts(raw_tables, workers, tmp_path):
    raw = tmp_path / "app"
    shutil.copytree(raw_tables, raw)
    lines = (raw / "tables.yaml").read_text().splitlines(keepends=True)
    features = [line for line in lines if line.startswith(("user:", "item:"))]
    (raw / "tables.yaml").write_text("".join(line for line in lines if line not in features))
    n = pl.int_range(pl.len())
    pl.read_parquet(raw / "users.parquet").with_columns(
        city=pl.concat_str(pl.lit("city "), n % 7).cast(pl.Categorical),
        level=(n % 5).cast(pl.UInt64),
        high=pl.when(n == 299).then(2**63 + 5).otherwise(n).cast(pl.UInt64),
        bio=pl.when(n % 3 > 0).then(pl.format("likes {}", n)),
        joined=pl.lit(date(2024, 1, 31)) - pl.duration(days=n % 4),
    ).write_parquet(raw / "users.parquet", row_group_size=50)
    pl.read_parquet(raw / "items.parquet").with_columns(
        title=pl.format("film {}", n),
        colours=pl.concat_list(pl.when(n % 2 > 0).then(pl.lit("red")), pl.lit("blue")),
    ).write_parquet(raw / "items.parquet")
    write_dataset(read_tables(raw), tmp_path / "one", CHOICES["time"])
    parts = {}
    in_parts(
        raw,
        tmp_path / "out",
        workers,
        CHOICES["time"],
        part_rows=90,
        progress=lambda stage, _, total: parts.update({stage: total}),
    )
    assert differences(tmp_path / "out", tmp_path / "one") == []
    assert (parts["users"], parts["items"]) == (4, 3)
    schema = load_schema(tmp_path / "out")
    assert {"city", "level"} <= {feature.name for feature in schema.sparse}
    assert schema.counts["empty_text"] == {"users.bio": 100}


def test_counts_merged_by_many_ranges_are_the_same(
    raw_tables, whole, workers, tmp_path, monkeypatch
):
    monkeypatch.setattr(merged_counts, "ENTRIES", 64)  # a query, and seven users of nine counts
    ranges = {}
    in_parts(
        raw_tables,
        tmp_path / "out",
        workers,
        CHOICES["random"],
        progress=lambda stage, _, total: ranges.update({stage: total}),
    )
    assert differences(tmp_path / "out", whole / "random") == []
    assert ranges["sides"] == -(-USERS // 7) + -(-ITEMS // 7)
    assert ranges["trained"] == -(-USERS // 64) + -(-ITEMS // 64)
    assert ranges["lookups"] > 3


class Here:
    """Engine that runs all parts in this process, which sees what a test has patched."""

    def run(self, function, tasks):
        for task in tasks:
            yield function(task)


def test_indices_of_many_shares_make_the_same_dataset(raw_tables, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "INDEX_ROWS", 50)
    parts = {}
    in_parts(
        raw_tables,
        tmp_path / "out",
        Here(),
        CHOICES["time"],
        progress=lambda stage, _, total: parts.update({stage: total}),
    )
    assert differences(tmp_path / "out", whole / "time") == []
    assert parts["keys"] == -(-USERS // 50) + -(-ITEMS // 50)
    assert parts["index"] > 3


def test_ray_makes_the_same_dataset(raw_tables, whole, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    with make_engine("ray", 2, None) as engine:
        in_parts(raw_tables, tmp_path / "out", engine, CHOICES["user_last"])
    assert differences(tmp_path / "out", whole / "user_last") == []


def test_hashed_managed_and_grown_tables_are_the_same(raw_tables, whole, workers, tmp_path):
    tables = {"query": Hashed(100, 2), "user_id": Managed(50), "page": Hashed(20)}
    tables |= {"item_id": Frequent(20)}
    settings = {"grow_from": whole / "time", "table_kinds": tables}
    write_dataset(read_tables(raw_tables), tmp_path / "one", CHOICES["random"], **settings)
    in_parts(raw_tables, tmp_path / "out", workers, CHOICES["random"], **settings)
    assert differences(tmp_path / "out", tmp_path / "one") == []


def test_values_with_few_rows_are_left_out_alike(raw_tables, workers, tmp_path):
    tables = {"query": Frequent(5), "user_id": Frequent(15), "tags": Frequent(1070)}
    settings = {"table_kinds": tables}
    write_dataset(read_tables(raw_tables), tmp_path / "one", CHOICES["time"], **settings)
    in_parts(raw_tables, tmp_path / "out", workers, CHOICES["time"], **settings)
    assert differences(tmp_path / "out", tmp_path / "one") == []
    cut = load_schema(tmp_path / "one").counts["cut"]
    assert all(0 < cut[name]["values"] < cut[name]["of_values"] for name in tables)


def test_a_killed_worker_does_not_change_the_dataset(raw_tables, whole, tmp_path):
    killed = []

    def kill_one(stage, number, total):
        """Kills a worker when four parts of a stage are done."""
        if stage == "encode" and number == 4 and not killed:
            killed.append(max(psutil.Process().children(), key=lambda child: child.create_time()))
            killed[0].kill()

    with make_engine("processes", 2, None) as engine:
        in_parts(raw_tables, tmp_path / "out", engine, CHOICES["time"], 333, progress=kill_one)
    assert killed
    assert differences(tmp_path / "out", whole / "time") == []


def test_a_stopped_conversion_goes_on_with_the_missing_parts(raw_tables, whole, workers, tmp_path):
    out, work = tmp_path / "out", tmp_path / "out.parts"

    def stop(stage, number, total):
        if stage == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_parts(raw_tables, out, workers, CHOICES["user_last"], progress=stop)
    time.sleep(0.5)  # the calls that were under way end; few or many parts are done now
    for part in sorted((work / "encode").glob("[0-9]*"))[1:]:
        shutil.rmtree(part)
    counted = []
    in_parts(raw_tables, out, workers, CHOICES["user_last"], progress=lambda *a: counted.append(a))
    assert differences(out, whole / "user_last") == []
    assert {stage for stage, _, _ in counted} == {"encode", "sides", "lookups", "files"}
    numbers = [(number, total) for stage, number, total in counted if stage == "encode"]
    assert numbers[0][0] == 2
    assert len(numbers) == numbers[0][1] - 1


def test_a_work_folder_of_other_options_is_refused(raw_tables, workers, tmp_path):
    def stop(stage, number, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_parts(raw_tables, tmp_path / "out", workers, CHOICES["time"], progress=stop)
    with pytest.raises(ValueError, match=r"out\.parts must hold parts of this conversion"):
        in_parts(raw_tables, tmp_path / "out", workers, CHOICES["random"])
    marker = tmp_path / "out.parts" / MARKER
    assert "format" in json.loads(marker.read_text())
    marker.write_text(marker.read_text().replace('"format": ', '"format": 9'))
    with pytest.raises(ValueError, match=r"parts of this conversion; .* another version of msrec"):
        in_parts(raw_tables, tmp_path / "out", workers, CHOICES["time"])
    assert marker.is_file()


def test_bad_rows_are_counted_with_file_and_row(workers, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    labels = [0, 1] * 3000
    labels[2600] = labels[5999] = 7
    write_raw(raw, click=labels)
    whole, parts = RowFilter("skip"), RowFilter("skip")
    write_dataset(read_tables(raw), tmp_path / "one", CHOICES["time"], row_filter=whole)
    in_parts(raw, tmp_path / "out", workers, CHOICES["time"], row_filter=parts)
    assert differences(tmp_path / "out", tmp_path / "one") == []
    path = raw / "interactions" / "day-2.parquet"
    assert parts.excluded == whole.excluded == {f"{path}: column 'click' must be 0 or 1": 2}
    [example] = parts.examples.values()
    assert "found 7 in row 99 (" in example
    with pytest.raises(
        ValueError, match=r"day-2\.parquet: column 'click' .* in row (99|3498) "
    ) as e:
        in_parts(raw, tmp_path / "again", workers, CHOICES["time"])
    assert is_mistake(e.value)  # one sentence, without the stack of the process
    assert not (tmp_path / "again.parts").exists()  # the same call would be refused again
