"""KuaiSAR as published: search and recommendation logs of one short-video app."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, Chunk, Feature, RawTables
from msrec.data.convert.sources.text_reader import TextReader, required_files
from msrec.data.schema import Scenario, TextFields

FILES = ("rec_inter.csv", "src_inter.csv", "user_features.csv", "item_features.csv")
SCENARIOS = [
    Scenario(
        name="recommendation",
        description="The feed: videos that the app recommends one after another.",
    ),
    Scenario(name="search", description="Results of what the user typed into the search box."),
]
RECOMMENDATION, SEARCH = range(2)
PUBLISHED = {
    "KuaiSAR, kuaisar.github.io": {
        "recommendation": (14_605_716, 25_877, 4_046_367),
        "search": (5_059_169, 25_877, 3_026_189),
    },
    "KuaiSAR-small, kuaisar.github.io": {
        "recommendation": (7_493_101, 25_877, 2_281_034),
        "search": (3_171_231, 25_877, 2_012_476),
    },
}
LEVELS = ("first", "second", "third", "fourth")
USER_FEATURES = ("search_active_level", "rec_active_level", "onehot_feat1", "onehot_feat2")
ITEM_TEXTS = ("item_type", "upload_type")
ITEM_NUMBERS = ("author_id", *(f"{level}_level_category_id" for level in LEVELS))
ITEM_FEATURES = ("author_id", *ITEM_TEXTS, *ITEM_NUMBERS[1:])
FEATURES = (
    *ID_FEATURES,
    *(Feature(name, "user") for name in USER_FEATURES),
    *(Feature(name, "item") for name in ITEM_FEATURES),
    Feature("search_source", "interaction"),
    Feature("keyword", "interaction", "multi"),
)


def read_kuaisar(folder: Path, reader: TextReader) -> RawTables:
    """Reads rec_inter, src_inter, user_features and item_features .csv.

    The label is `click` of a recommendation, and `click_cnt` above 0 of a search result. The words
    of a query (hashed) are a feature of search rows only. Captions and the social network are not
    read. An item without a row in item_features is kept; its features are missing.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a column is missing or a row is bad; names file, column and row.

    Source:
        Sun et al., CIKM 2023 (arXiv 2306.07705); files as described on kuaisar.github.io.
    """
    recommended, searched, users, items = required_files(
        folder, "KuaiSAR", FILES, "https://kuaisar.github.io"
    )
    return RawTables(
        name="kuaisar",
        description="A short-video app; people watch what it recommends and search for videos.",
        interactions=_interactions(recommended, searched, reader),
        users=_users(users, reader),
        items=_items(items, reader),
        scenarios=SCENARIOS,
        features=FEATURES,
        timestamp="timestamp",
        timestamp_unit="ms",
        text=TextFields(
            item_attributes=["category"],
            user_attributes=["search_active_level", "rec_active_level"],
        ),
        files={"interactions": str(folder), "users": str(users), "items": str(items)},
        unknown_keys="add",
        published=PUBLISHED,
    )


def _interactions(recommended: Path, searched: Path, reader: TextReader) -> Iterator[Chunk]:
    keys = {"user_key": "user_id", "item_key": "item_id"}
    columns = dict.fromkeys(("user_id", "item_id", "timestamp", "click"), int)
    for frame in reader.csv(recommended, columns):
        rows = frame.select(
            *("row", "timestamp"),
            **keys,
            scenario=pl.lit(RECOMMENDATION),
            label="click",
            search_source=pl.lit(None, pl.String),
            keyword=pl.lit(None, pl.List(pl.Int64)),
        )
        yield Chunk(str(recommended), rows)
    numbers = ("user_id", "item_id", "search_session_timestamp", "click_cnt")
    texts = dict.fromkeys(("search_source", "keyword"), str | None)
    for frame in reader.csv(searched, dict.fromkeys(numbers, int) | texts):
        rows = frame.select(
            *("row", "search_source"),
            **keys,
            timestamp="search_session_timestamp",
            scenario=pl.lit(SEARCH),
            label=(pl.col("click_cnt") > 0).cast(pl.Int64),
            keyword=pl.col("keyword").str.extract_all(r"\d+").cast(pl.List(pl.Int64)),
        )
        yield Chunk(str(searched), rows)


def _users(path: Path, reader: TextReader) -> pl.DataFrame:
    columns = {"user_id": int, **dict.fromkeys(USER_FEATURES, int | None)}
    return reader.table(reader.csv(path, columns), path, "user_id", "user_key")


def _items(path: Path, reader: TextReader) -> pl.DataFrame:
    names = [f"{level}_level_category_name_en" for level in LEVELS]
    numbers = dict.fromkeys(ITEM_NUMBERS, int | None)
    texts = dict.fromkeys((*ITEM_TEXTS, *names), str | None)
    columns = {"item_id": int, **numbers, **texts}
    # The site says that author 0 is an unknown one.
    author = pl.when(pl.col("author_id") != 0).then(pl.col("author_id"))
    category = pl.concat_str(names, separator=", ", ignore_nulls=True).cast(pl.Categorical)
    frames = (
        frame.with_columns(author_id=author, category=category).drop(names)
        for frame in reader.csv(path, columns)
    )
    return reader.table(frames, path, "item_id", "item_key")
