"""Conversion of the published data sets, from small raw files in exactly their schemas."""

import gzip
import io
import json

import numpy as np
import polars as pl
import pytest
import raw_files
from raw_files import replace
from rich.console import Console

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.sources.text_reader import TextReader
from msrec.data.convert.split import SplitChoice
from msrec.data.llm.text.prompts import user_prompts
from msrec.data.llm.text.templates import load_template
from msrec.data.schema import load_schema
from msrec.tools.cli.convert import ABOUT, OWN, SHARED, SPLIT
from msrec.tools.convert import SOURCES, convert, split_choice

pytestmark = pytest.mark.slow

AMAZON_YEARS = (2014, 2018, 2023)
KUAIRAND_LABELS = ["click", "like", "follow", "comment", "forward", "long_view", "play_time"]
MAKERS = {
    "kuaisar": raw_files.kuaisar,
    "kuairand": raw_files.kuairand,
    "douban": raw_files.douban,
    "aliccp": raw_files.aliccp,
    **{f"amazon {y}": lambda folder, y=y: raw_files.amazon(folder, y) for y in AMAZON_YEARS},
}


def make(tmp_path, name):
    """A raw folder of a source."""
    return MAKERS[name](tmp_path / "raw")


def converted(tmp_path, name, **options):
    """(dataset folder, its schema, the report); `options` are those of the command."""
    raw = tmp_path / "raw"
    if not raw.exists():
        make(tmp_path, name)
    console = Console(file=io.StringIO(), width=200)
    source = name.partition(" ")[0]
    out = tmp_path / "out"
    split = {name: options.pop(name) for name in SPLIT if name in options}
    choice = split_choice(source, **split)
    schema = convert(source, raw, out, choice=choice, console=console, overwrite=True, **options)
    return out, schema, console.file.getvalue()


def rows_of(dataset):
    """All interactions with the raw keys in addition to the positions."""
    rows = pl.concat(
        [pl.read_parquet(dataset / s / "*.parquet") for s in ("train", "valid", "test")]
    )
    users, items = (pl.read_parquet(dataset / f"{t}.parquet") for t in ("users", "items"))
    return rows.with_columns(
        user_key=users["user_key"].gather(rows["user"]),
        item_key=items["item_key"].gather(rows["item"]),
    )


def total(counts, name="all"):
    return sum(counts[split][name] for split in ("train", "valid", "test"))


# What each becomes ---------------------------------------------------------------------------


def test_kuaisar_becomes_two_scenarios_with_clicks_and_queries(tmp_path):
    out, schema, report = converted(tmp_path, "kuaisar")
    assert [s.name for s in schema.scenarios] == ["recommendation", "search"]
    assert (total(schema.counts["rows"], "recommendation"), total(schema.counts["rows"])) == (
        48,
        84,
    )
    rows = rows_of(out)
    first = rows.filter((pl.col("user_key") == 1) & (pl.col("item_key") == 2)).row(0, named=True)
    assert (first["scenario"], first["label"], first["timestamp"]) == (0, 1.0, 1_684_742_000_001)
    search = rows.filter(pl.col("scenario") == 1).sort("timestamp")
    assert search["label"].to_list() == [float(n % 3 > 0) for n in range(36)]
    assert search["keyword"].list.len().unique().to_list() == [2]
    assert rows.filter(pl.col("scenario") == 0)["keyword"].list.len().sum() == 0
    items = pl.read_parquet(out / "items.parquet")
    assert items["category"].to_list() == ["Food, Noodles"] * 9 + [""]
    assert "author_id" in schema.counts["missing"]  # author 0 is nobody, and item 10 has no row
    assert "items that only interactions name, added without features: 1" in report
    assert "KuaiSAR-small" in report
    assert "2023-05-22 07:53 to 2023-05-22 07:53" in report


def test_kuairand_tabs_are_scenarios_and_other_tabs_are_counted(tmp_path):
    out, schema, report = converted(tmp_path, "kuairand")
    assert [s.name for s in schema.scenarios] == [f"tab {t}" for t in (0, 1, 2, 4, 6)]
    assert schema.counts["left_out"] == {"rows of other tabs": 120 - total(schema.counts["rows"])}
    assert "left out: 34: rows of other tabs" in report
    rows = rows_of(out)
    number = rows["user_key"] * 30 + rows["item_key"]
    tabs = pl.Series([0, 1, 2, 4, 6]).gather(rows["scenario"])
    assert (tabs == number % 7).all()
    assert schema.labels == KUAIRAND_LABELS
    assert (rows["click"] == number % 2).all()
    assert (rows["long_view"] == (number % 3 == 0)).all()
    assert (rows["play_time"] == rows["item_key"] * 0.5 + 0.25).all()
    items = pl.read_parquet(out / "items.parquet")
    assert items["tags"].to_list()[:4] == ["", "tag 12, tag 65", "", "tag 12, tag 65"]
    seconds = rows.group_by(pl.col("item_key") % 2).agg(pl.col("seconds").max()).sort("item_key")
    assert seconds["seconds"].to_list() == [
        0,
        1,
    ]  # 17.2 s is in the class of 16 s; unknown is row 0
    assert schema.counts["added"] == {"items": 2}
    assert schema.tables["onehot_feat4"] == 1  # empty for everyone: the unknown row alone


def test_kuairand_takes_other_tabs_and_labels(tmp_path):
    _, schema, _ = converted(tmp_path, "kuairand", tabs=[5, 3], label="long_view")
    assert [s.name for s in schema.scenarios] == ["tab 5", "tab 3"]
    assert 0 < total(schema.counts["positives"]) < total(schema.counts["rows"]) == 34
    assert schema.labels == ["long_view", *(n for n in KUAIRAND_LABELS if n != "long_view")]


def test_kuairand_play_times_are_clipped_in_training_and_counted(tmp_path):
    replace(make(tmp_path, "kuairand") / "data/log_standard_4_08_to_4_21_1k.csv", ",250,", ",,")
    for log in (tmp_path / "raw" / "data").glob("log_standard*"):
        log.write_text(log.read_text().replace(",14250,", ",9000000,"))
    out, schema, report = converted(tmp_path, "kuairand")
    options = schema.label("play_time")
    assert (options.kind, options.transform, options.clip) == ("regression", "log", (0, 600))
    played = rows_of(out)["play_time"].to_numpy()
    counts = schema.counts["labels"]["play_time"].values()
    assert sum(split["clipped"] for split in counts) == (played == 9000).sum() > 0
    assert sum(split["missing"] for split in counts) == np.isnan(played).sum() > 0
    train = pl.read_parquet(out / "train" / "*.parquet")["play_time"].to_numpy()
    targets = np.log1p(np.clip(train[~np.isnan(train)].astype(np.float64), 0, 600))
    assert (options.scale.mean, options.scale.std) == pytest.approx((targets.mean(), targets.std()))
    assert "label play_time: in" in report


def test_kuairand_takes_the_labels_that_its_logs_have(tmp_path):
    for log in (make(tmp_path, "kuairand") / "data").glob("log_standard*"):
        log.write_text(log.read_text().replace("is_like", "liked").replace("play_time_ms", "ms"))
    _, schema, report = converted(tmp_path, "kuairand")
    assert schema.labels == ["click", "follow", "comment", "forward", "long_view"]
    assert "no such label in the logs: is_like, play_time_ms" in report


@pytest.mark.parametrize("year", AMAZON_YEARS)
def test_amazon_categories_are_scenarios_in_all_three_releases(tmp_path, year):
    out, schema, report = converted(tmp_path, f"amazon {year}")
    assert [s.name for s in schema.scenarios] == ["Beauty", "Toys_and_Games"]
    assert schema.counts["users"] == {"all": 6, "Beauty": 6, "Toys_and_Games": 6}
    rows = rows_of(out)
    assert len(rows) == 60
    u, i = (rows[key].str.slice(1).cast(pl.Int64) for key in ("user_key", "item_key"))
    assert schema.labels == ["label", "rating>1", "rating>2", "rating>4"]
    for name, stars in {"label": 3, "rating>1": 1, "rating>2": 2, "rating>4": 4}.items():
        assert (rows[name] == ((u + i) % 5 + 1 > stars)).all()
    seconds = 1_385_596_800 + 60 * u + i
    assert (rows["timestamp"] == seconds * (1000 if year == 2023 else 1)).all()
    items = pl.read_parquet(out / "items.parquet")
    assert items["title"].to_list() == [f"It's Beauty {n}" for n in range(4)] + [""]
    assert items["category"].to_list() == ["Beauty > Skin Care"] * 4 + [""]
    assert schema.counts["added"] == {"users": 6, "items": 1}
    assert f"release of {year}" in report
    assert "a row whose item_key is there already" in report  # both meta files have A0 to A3


def test_douban_ratings_of_books_music_and_films(tmp_path):
    out, schema, report = converted(tmp_path, "douban")
    assert [s.name for s in schema.scenarios] == ["book", "music", "movie"]
    assert total(schema.counts["rows"]) == 90 - 3
    assert {why.rpartition(": ")[2] for why in schema.counts["left_out"]} == {
        "a review without a rating"
    }
    rows = rows_of(out)
    domain, number = (rows["item_key"].str.extract(p) for p in (r"^(\w+)", r"(\d+)$"))
    assert (domain == pl.Series(["book", "music", "movie"]).gather(rows["scenario"])).all()
    stars = 1 + (rows["user_key"] + number.cast(pl.Int64)) % 5
    assert (rows["label"] == (stars > 3)).all()
    assert rows["timestamp"].min() == 1_389_312_000  # 2014-01-10
    items = pl.read_parquet(out / "items.parquet")
    films = items.filter(pl.col("item_key").str.starts_with("movie"))
    assert films["name"].to_list() == [f"Film {i}" for i in range(6)]
    assert set(items.filter(pl.col("name") == "")["item_key"].str.extract(r"^(\w+)")) == {
        "book",
        "music",
    }
    assert schema.counts["added"] == {"users": 1, "items": 12}
    assert "1,278,401" in report


def test_aliccp_joins_the_common_features_and_halves_the_test_part(tmp_path):
    out, schema, _ = converted(tmp_path, "aliccp")
    assert schema.split.method == "given"
    rows = {s: pl.read_parquet(out / s / "*.parquet") for s in ("train", "valid", "test")}
    assert len(rows["train"]) == 60
    assert len(rows["valid"]) + len(rows["test"]) == 60
    assert min(len(rows["valid"]), len(rows["test"])) > 15
    all_rows = rows_of(out)
    assert sorted(all_rows["user_key"].unique()) == [100, 101, 102]
    train = all_rows.head(60)
    assert train["item_key"].to_list() == [n % 11 for n in range(60)]
    assert train["user_key"].to_list() == [100 + n % 6 // 2 for n in range(60)]
    assert train["scenario"].to_list() == [n % 3 for n in range(60)]
    # A purchase exists only after a click.
    assert schema.labels == ["click", "purchase"]
    assert schema.label("purchase").exists_where == "click"
    bought = train["purchase"].to_numpy()
    np.testing.assert_array_equal(np.isnan(bought), train["click"] == 0)
    clicked = train["click"].to_numpy() == 1
    np.testing.assert_array_equal(bought[clicked], (np.arange(60) % 5 == 0)[clicked])
    # Values are dealt out: category 0, 1, 2 and user field 121 0, 1, 2 get rows 1, 3, 2.
    assert train["f206"].to_list() == [(1, 3, 2)[n % 3] for n in range(60)]
    assert train["f121"].to_list() == [(1, 3, 2)[n % 6 // 2] for n in range(60)]


@pytest.mark.parametrize("name", MAKERS)
def test_prompts_can_be_written_of_every_data_set(tmp_path, name):
    out, schema, _ = converted(tmp_path, name)
    prompts = user_prompts(out, load_template("default"))
    if name == "aliccp":  # nothing there can be read
        assert len(prompts) == 0
        assert prompts.counts["left_out"] == schema.num_users
    else:
        assert len(prompts) > 0


def test_a_prompt_has_titles_of_every_scenario(tmp_path):
    out, _, _ = converted(tmp_path, "amazon 2018", split="random", fractions=(0.9, 0.05, 0.05))
    text = dict(user_prompts(out, load_template("default")).pairs())["U1"]
    assert "Beauty, liked: It's Beauty" in text
    assert "Toys_and_Games, liked: It's Beauty" in text  # A0 to A3 are the same items in both


# Protocols -----------------------------------------------------------------------------------

PROTOCOLS = ("scenario-wise", "temporal", "per-user-last")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ["kuaisar", "kuairand", "douban"])
def test_a_protocol_by_name_is_recorded_and_is_what_it_says(tmp_path, name, protocol):
    out, _, _ = converted(tmp_path, name, protocol=protocol)
    split = load_schema(out).split
    assert split.protocol == protocol
    stamp = load_schema(out).timestamp
    parts = {s: pl.read_parquet(out / s / "*.parquet") for s in ("train", "valid", "test")}
    if protocol == "scenario-wise":
        assert (split.method, split.seed, split.fractions) == ("random", 0, [0.8, 0.1, 0.1])
    elif protocol == "temporal":
        assert parts["train"][stamp].max() < parts["valid"][stamp].min()
        assert parts["valid"][stamp].max() < parts["test"][stamp].min()
    else:
        assert split.last == 1
        times = {s: rows.group_by("user").agg(pl.col(stamp).max()) for s, rows in parts.items()}
        joined = times["train"].join(times["test"], on="user")
        assert len(joined)
        assert (joined[stamp] < joined[f"{stamp}_right"]).all()


def test_aliccp_has_its_given_split_under_the_scenario_wise_protocol_and_no_clock(tmp_path):
    _, schema, _ = converted(tmp_path, "aliccp", protocol="scenario-wise")
    assert (schema.split.protocol, schema.split.method) == ("scenario-wise", "given")
    with pytest.raises(ValueError, match="a split by time needs a timestamp column"):
        converted(tmp_path, "aliccp", protocol="temporal")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kuairand", {"tabs": [0, 1]}, "the published tabs are 0,1,2,4,6"),
        ("kuairand", {"label": "is_like"}, "the published label is is_click"),
        ("amazon 2018", {}, "the published ones are Beauty, Clothing"),
        ("aliccp", {"label": "purchase"}, "the published label is click"),
    ],
)
def test_the_scenario_wise_protocol_refuses_other_scenarios(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=f"the scenarios of Scenario-Wise-Rec; .*{message}"):
        converted(tmp_path, name, protocol="scenario-wise", **options)


def test_a_protocol_and_a_split_are_not_given_together(tmp_path):
    with pytest.raises(ValueError, match="give --protocol or --split with its options, not both"):
        converted(tmp_path, "kuaisar", protocol="temporal", split="random")


# Faults --------------------------------------------------------------------------------------

FAULTS = {
    "kuaisar": [
        ("rec_inter.csv", "click", "klick", "rec_inter.csv must have the column 'click'"),
        (
            "rec_inter.csv",
            "1,2,",
            "1,x,",
            "rec_inter.csv: column 'item_id' must be a whole number; f",
        ),
        ("rec_inter.csv", "1,2,6079.2,", "1,2,", "each row must have 12 fields; found 11 in row 1"),
        (
            "rec_inter.csv",
            ".0,1,0,0",
            ".0,2,0,0",
            "column 'label' must be 0 or 1; found 2 in row 1",
        ),
        ("src_inter.csv", "[5, 7]", '[5, "7]', "every quoted field must end"),
        ("user_features.csv", "\n2,", "\n,", "user_features.csv: column 'user_id' must be a whole"),
    ],
    "kuairand": [
        ("data/log_standard_4_22_to_5_08_1k.csv", ",tab", ",page", "must have the column 'tab'"),
        ("data/log_standard_4_08_to_4_21_1k.csv", "16504858013", "y", "'time_ms' must be a whole"),
        ("data/video_features_basic_1k.csv", "0,0,AD", "0,0,A,D", "must have 12 fields; found 13"),
    ],
    "amazon 2018": [
        ("Beauty_5.json", '{"reviewerID": "U0"', '{"reviewerID": U0', "row 0 is not JSON"),
        ("Beauty_5.json", '"overall": 2.0', '"overall": 9.0', "must be from 1 to 5; found '?9.0"),
        (
            "Beauty_5.json",
            '"asin": "A1"',
            '"asin": null',
            "column 'asin' must be there; found None",
        ),
        (
            "meta_Beauty.json",
            '["Beauty", "Skin Care"]',
            '"Beauty"',
            "'category', which must be a li",
        ),
        (
            "meta_Beauty.json",
            '["Beauty", "Skin Care"]',
            '[["Beauty", "Skin Care"]]',
            "column 'category' must be a list of strings, as published, and no list of lists",
        ),
    ],
    "amazon 2014": [
        (
            "meta_Beauty.json",
            "{'asin': 'A1'",
            "{'asin': A1(",
            "must be one Python dictionary; row 1",
        ),
        (
            "meta_Beauty.json",
            "[['Beauty', 'Skin Care'], ['Beauty', 'Other']]",
            "['Beauty', 'Skin Care']",
            "row 0 holds .'Beauty', 'Skin Care'. under 'categories', which must be a list of lists",
        ),
        ("meta_Beauty.json", "'Acme'", "['Acme']", "under 'brand', which must be a string"),
        ("meta_Beauty.json", "'Acme'", "'Acme', 'brand': 'B'", "row 0 has a key twice"),
    ],
    "douban": [
        ("bookreviews_cleaned.txt", "2014-01-10", "10.1.2014", "begin with a date such as"),
        ("moviereviews_cleaned.txt", '0\t0\t1\t"', '0\t0\t7\t"', "'rating' must be from 1 to 5"),
        ("users_cleaned.txt", '"UID"', '"ID"', "users_cleaned.txt must have the column 'UID'"),
    ],
    "aliccp": [
        (
            "sample_skeleton_train.csv",
            "301\x021",
            "301\x029",
            "be a known scenario .* found 8 in row 0",
        ),
        ("sample_skeleton_train.csv", "205\x020\x03", "999\x020\x03", "have field 205"),
        ("sample_skeleton_train.csv", ",c0,", ",", "each row must have 6 fields; found 5 in row 0"),
        ("common_features_train.csv", "101\x02100", "102\x02100", "must name a user .* in row 0"),
    ],
}
CASES = [(name, *fault) for name, faults in FAULTS.items() for fault in faults]


@pytest.mark.parametrize(("name", "file", "old", "new", "message"), CASES)
def test_a_fault_is_one_sentence_and_leaves_nothing_behind(tmp_path, name, file, old, new, message):
    replace(make(tmp_path, name) / file, old, new)
    with pytest.raises(ValueError, match=message) as error:
        converted(tmp_path, name)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


@pytest.mark.parametrize(
    ("name", "file", "old", "new"),
    [
        ("kuaisar", "rec_inter.csv", "1,2,6079.2,", "1,2,"),
        ("amazon 2018", "Beauty_5.json", '{"reviewerID": "U0"', '{"reviewerID": U0'),
        ("amazon 2023", "Beauty.jsonl", '"rating": 2.0', '"rating": 9.0'),
        ("aliccp", "sample_skeleton_train.csv", "301\x021", "301\x029"),
    ],
)
def test_bad_rows_can_be_left_out_and_are_counted_with_the_first_named(
    tmp_path, name, file, old, new
):
    _, whole, _ = converted(tmp_path, name)
    replace(tmp_path / "raw" / file, old, new)
    _, schema, report = converted(tmp_path, name, bad_rows="skip")
    assert total(schema.counts["rows"]) == total(whole.counts["rows"]) - 1
    new_reasons = set(schema.counts["left_out"]) - set(whole.counts["left_out"])
    assert [schema.counts["left_out"][why] for why in new_reasons] == [1]
    assert "left out, first: " in report
    assert "in row" in report or "row 0" in report


def pack(raw):
    """Gzips all files of a folder that are not packed yet."""
    for path in [path for path in raw.rglob("*") if path.is_file() and path.suffix != ".gz"]:
        with gzip.open(f"{path}.gz", "wb") as file:
            file.write(path.read_bytes())
        path.unlink()


@pytest.mark.parametrize("name", MAKERS)
def test_files_of_every_source_may_be_gzipped(tmp_path, name):
    _, plain, _ = converted(tmp_path, name)
    pack(tmp_path / "raw")
    _, packed, _ = converted(tmp_path, name)
    assert packed.tables == plain.tables
    assert packed.counts["rows"] == plain.counts["rows"]
    assert packed.counts["empty_text"] == plain.counts["empty_text"]


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("kuaisar", "item_features.csv", "item_features.csv must exist: KuaiSAR is"),
        (
            "kuairand",
            "data/user_features_1k.csv",
            "user_features_1k.csv must exist: KuaiRand-1k with log_st",
        ),
        ("douban", "movies_cleaned.txt", "movies_cleaned.txt must exist: Douban is"),
        ("aliccp", "common_features_test.csv", "common_features_test.csv must exist: Ali-CCP is"),
    ],
)
def test_a_missing_file_is_named_with_what_the_data_set_is(tmp_path, name, file, message):
    (make(tmp_path, name) / file).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        converted(tmp_path, name)


def test_amazon_without_reviews_or_a_category_is_refused(tmp_path):
    make(tmp_path, "amazon 2018")
    with pytest.raises(FileNotFoundError, match="Books has none. Found: Beauty, Toys_and_Games"):
        converted(tmp_path, "amazon 2018", categories=["Beauty", "Books"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="must hold review files such as reviews_Beauty"):
        SOURCES["amazon"].read(tmp_path / "empty", TextReader())


def test_amazon_without_meta_files_has_no_titles_and_says_so(tmp_path):
    raw = make(tmp_path, "amazon 2014")
    for path in raw.glob("meta_*"):
        path.unlink()
    _, schema, report = converted(tmp_path, "amazon 2014", categories=["Toys_and_Games"])
    assert "no meta file, so no titles: Toys_and_Games" in report
    assert schema.counts["added"] == {"users": 6, "items": 5}


def test_kuairand_refuses_two_versions_unknown_tabs_and_labels(tmp_path):
    raw = make(tmp_path, "kuairand")
    for options, message in (
        ({"tabs": [0, 15]}, "different numbers from 0 to 14; got \\[0, 15\\]"),
        ({"tabs": [1, 1]}, "different numbers"),
        ({"label": "click"}, "label must be one of is_click"),
    ):
        with pytest.raises(ValueError, match=message):
            converted(tmp_path, "kuairand", **options)
    raw_files.kuairand(raw, "pure")
    with pytest.raises(ValueError, match="the logs of one version; it holds 1k, pure"):
        converted(tmp_path, "kuairand")


# Streaming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_the_dataset_does_not_depend_on_the_size_of_blocks_and_chunks(tmp_path, name, monkeypatch):
    whole = contents(converted(tmp_path, name)[0])
    monkeypatch.setattr("msrec.data.convert.sources.text_blocks.BLOCK_BYTES", 150)
    monkeypatch.setattr("msrec.data.convert.staging.CHUNK_ROWS", 3)
    monkeypatch.setattr("msrec.data.convert.staging.LOOKUP_ROWS", 7)
    assert contents(converted(tmp_path, name)[0]) == whole


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_users_in_many_shares_are_split_and_counted_as_in_one(tmp_path, monkeypatch):
    raw = make(tmp_path, "kuaisar")
    choice = SplitChoice.of("per-user-last")
    one = write_dataset(SOURCES["kuaisar"].read(raw, TextReader()), tmp_path / "one", choice)
    shares = "msrec.data.convert.split.user_shares"
    from msrec.data.convert.split import user_shares

    monkeypatch.setattr(shares, lambda stage: user_shares(stage, rows=10))
    monkeypatch.setattr(
        "msrec.data.convert.statistics.user_shares", lambda stage: user_shares(stage, rows=10)
    )
    two = write_dataset(SOURCES["kuaisar"].read(raw, TextReader()), tmp_path / "two", choice)
    assert one == two
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


# The command line ----------------------------------------------------------------------------


def test_the_commands_are_the_sources_and_their_options_are_those_of_the_converter():
    import inspect

    from msrec.data.schema import Protocol

    assert list(ABOUT) == list(SOURCES)
    split = set(inspect.signature(split_choice).parameters) - {"source"}
    assert set(SPLIT) == split
    others = {"source", "choice", "console", "options"}
    parameters = set(inspect.signature(convert).parameters) - others | split
    assert set(SHARED) == parameters - {"table_kinds"} | {"hash", "managed", "min_rows"}
    for name, source in SOURCES.items():
        own = set(inspect.signature(source.read).parameters) - {"folder", "reader"}
        assert set(OWN.get(name, {})) == own, name
    annotation = SHARED["protocol"][0].__origin__
    assert set(annotation.__args__[0].__args__) == set(Protocol.__args__)


def test_lists_are_read_from_the_command_line(tmp_path, monkeypatch, capsys):
    import sys

    from msrec.tools.cli.main import main

    raw = make(tmp_path, "kuairand")
    args = ["msrec", "convert", "kuairand", str(raw), str(tmp_path / "out"), "--tabs"]
    for tabs, status in (("0,4", 0), ("0,x", 2)):
        monkeypatch.setattr(sys, "argv", [*args, tabs, "--overwrite"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == status
    assert "--tabs must be numbers separated by commas; got '0,x'" in capsys.readouterr().err
    assert [s.name for s in load_schema(tmp_path / "out").scenarios] == ["tab 0", "tab 4"]


def test_a_bad_json_line_far_into_the_file_is_named_by_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr("msrec.data.convert.sources.text_blocks.BLOCK_BYTES", 700)
    raw = make(tmp_path, "amazon 2023")
    lines = (raw / "Beauty.jsonl").read_text().splitlines()
    lines[23] = lines[23][:-1]
    (raw / "Beauty.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"Beauty.jsonl: each line must be .*; row 23 is not JSON"):
        converted(tmp_path, "amazon 2023")
    assert json.loads(lines[22])
