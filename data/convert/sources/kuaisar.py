"""KuaiSAR as it is published: search and recommendation logs of one short-video app."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, Chunk, Feature, Published, RawTables
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources.text_files import TEXT, Column, Report, first_of_each, read_csv
from msrec.data.schema import Scenario, TextFields

SCENARIOS = [
    Scenario(
        name="recommendation",
        description="The feed: videos that the app recommends one after another.",
    ),
    Scenario(name="search", description="Results of what the user typed into the search box."),
]
RECOMMENDATION, SEARCH = range(2)
PUBLISHED = (
    Published(
        "KuaiSAR, kuaisar.github.io",
        {
            "recommendation": (14_605_716, 25_877, 4_046_367),
            "search": (5_059_169, 25_877, 3_026_189),
        },
    ),
    Published(
        "KuaiSAR-small, kuaisar.github.io",
        {
            "recommendation": (7_493_101, 25_877, 2_281_034),
            "search": (3_171_231, 25_877, 2_012_476),
        },
    ),
)
LEVELS = ("first", "second", "third", "fourth")
USER_FEATURES = ("search_active_level", "rec_active_level", "onehot_feat1", "onehot_feat2")
ITEM_FEATURES = (
    "author_id",
    "item_type",
    "upload_type",
    *(f"{n}_level_category_id" for n in LEVELS),
)
FEATURES = (
    *ID_FEATURES,
    *(Feature(name, "user") for name in USER_FEATURES),
    *(Feature(name, "item") for name in ITEM_FEATURES),
    Feature("search_source", "interaction"),
    Feature("keyword", "interaction", "multi"),
)


def read_kuaisar(folder: Path, faults: RowFilter, report: Report | None = None) -> RawTables:
    """Read rec_inter, src_inter, user_features and item_features .csv.

    The label is `click` of a recommendation and `click_cnt` above 0 of a search result. The words
    of a query (hashed) are a feature of search rows only. Captions and the social network are not
    read. An item without a row of features is kept, with its features missing.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a column is missing or a row is bad; names file, column and row.

    Source:
        Sun et al., CIKM 2023 (arXiv 2306.07705); files as kuaisar.github.io describes them.
    """
    paths = {name: folder / f"{name}.csv" for name in ("rec_inter", "src_inter")}
    users, items = folder / "user_features.csv", folder / "item_features.csv"
    for path in (*paths.values(), users, items):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} must exist: KuaiSAR is rec_inter.csv, src_inter.csv, user_features.csv "
                "and item_features.csv, from https://kuaisar.github.io."
            )
    return RawTables(
        name="kuaisar",
        description="A short-video app; people watch what it recommends and search for videos.",
        interactions=_interactions(paths["rec_inter"], paths["src_inter"], faults, report),
        users=_users(users, faults, report),
        items=_items(items, faults, report),
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


def _interactions(
    recommended: Path, searched: Path, faults: RowFilter, report: Report | None
) -> Iterator[Chunk]:
    keys = [Column("user_id"), Column("item_id")]
    columns = [*keys, Column("timestamp"), Column("click")]
    for frame in read_csv(recommended, columns, faults, report):
        yield Chunk(
            str(recommended),
            frame.select(
                *_KEYS,
                "row",
                "timestamp",
                scenario=pl.lit(RECOMMENDATION),
                label="click",
                search_source=pl.lit(None, pl.String),
                keyword=pl.lit(None, pl.List(pl.Int64)),
            ),
        )
    columns = [*keys, Column("search_session_timestamp"), Column("click_cnt")]
    columns += [
        Column("search_source", TEXT, optional=True),
        Column("keyword", TEXT, optional=True),
    ]
    for frame in read_csv(searched, columns, faults, report):
        words = pl.col("keyword").str.extract_all(r"\d+").cast(pl.List(pl.Int64))
        yield Chunk(
            str(searched),
            frame.select(
                *_KEYS,
                "row",
                "search_source",
                timestamp="search_session_timestamp",
                scenario=pl.lit(SEARCH),
                label=(pl.col("click_cnt") > 0).cast(pl.Int64),
                keyword=words,
            ),
        )


_KEYS = (pl.col("user_id").alias("user_key"), pl.col("item_id").alias("item_key"))


def _users(path: Path, faults: RowFilter, report: Report | None) -> pl.DataFrame:
    columns = [Column("user_id"), *(Column(name, optional=True) for name in USER_FEATURES)]
    frame = pl.concat(read_csv(path, columns, faults, report))
    return first_of_each(frame, "user_id", path, faults).rename({"user_id": "user_key"})


def _items(path: Path, faults: RowFilter, report: Report | None) -> pl.DataFrame:
    texts = ("item_type", "upload_type")
    names = [f"{level}_level_category_name_en" for level in LEVELS]
    columns = [Column("item_id")]
    columns += [Column(n, TEXT, optional=True) for n in (*texts, *names)]
    columns += [Column(n, optional=True) for n in ITEM_FEATURES if n not in texts]
    known = [pl.when(pl.col(n).str.len_chars() > 0).then(pl.col(n)) for n in names]
    category = pl.concat_str(known, separator=", ", ignore_nulls=True).cast(pl.Categorical)
    frame = pl.concat(
        frame.with_columns(
            # 0 stands for an author that is not known, by the site's description.
            author_id=pl.when(pl.col("author_id") != 0).then(pl.col("author_id")),
            category=category,
        ).drop(names)
        for frame in read_csv(path, columns, faults, report)
    )
    return first_of_each(frame, "item_id", path, faults).rename({"item_id": "item_key"})
