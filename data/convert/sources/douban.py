"""Douban as published: ratings of books, music and films by the same people."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, Chunk, Feature, RawTables
from msrec.data.convert.sources.text_blocks import CsvFormat
from msrec.data.convert.sources.text_reader import TextReader, required_files
from msrec.data.schema import Scenario, TextFields

SITE = "Kaggle (fengzhujoey/douban-datasetratingreviewside-information)"
FILES = (
    "bookreviews_cleaned.txt",
    "musicreviews_cleaned.txt",
    "moviereviews_cleaned.txt",
    "users_cleaned.txt",
    "movies_cleaned.txt",
)
TABS = CsvFormat(separator="\t")
DOMAINS = {
    "book": "Books that people have read and rated.",
    "music": "Records that people have heard and rated.",
    "movie": "Films that people have seen and rated.",
}
PUBLISHED = {
    "Douban, Scenario-Wise-Rec, arXiv 2412.17374": {
        "book": (227_251, 2_212, 95_872),
        "music": (179_847, 1_820, 79_878),
        "movie": (1_278_401, 2_712, 34_893),
    },
}
MOVIE_TEXTS = ("name", "director", "country", "language", "tag")
FEATURES = (
    *ID_FEATURES,
    Feature("living_place", "user"),
    Feature("join_month", "user"),
    Feature("director", "item"),
    Feature("country", "item"),
    Feature("language", "item"),
)
SECONDS_A_DAY = 86_400


def read_douban(folder: Path, reader: TextReader) -> RawTables:
    """Reads the three review files, users_cleaned and movies_cleaned .txt.

    The label is a rating above 3 of 5. A review without a rating has no label; it is left out and
    counted. Items are called `book 7`, `music 7`, `movie 7`, since each file numbers its own. Only
    films have texts: the texts of books and records are what people wrote about them, which gives
    the label away.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a column is missing or a row is bad; names file, column and row.

    Source:
        Zhu et al., IJCAI 2020 (GA-DTCDR); tab-separated files as published on Kaggle
        (fengzhujoey/douban-datasetratingreviewside-information).
    """
    *reviews, users, movies = required_files(folder, "Douban", FILES, SITE)
    return RawTables(
        name="douban",
        description="A site where people rate the books they read, the records they hear and the "
        "films they see; four or five of five stars is liked.",
        interactions=_interactions(reviews, reader),
        users=_users(users, reader),
        items=_movies(movies, reader),
        scenarios=[Scenario(name=n, description=d) for n, d in DOMAINS.items()],
        features=FEATURES,
        timestamp="timestamp",
        timestamp_unit="s",
        text=TextFields(
            item_title="name",
            item_attributes=["tag", "director", "country"],
            user_attributes=["living_place"],
        ),
        files={"interactions": str(folder), "users": str(users), "items": str(movies)},
        unknown_keys="add",
        published=PUBLISHED,
    )


def _interactions(reviews: Sequence[Path], reader: TextReader) -> Iterator[Chunk]:
    exclude, keep = reader.row_filter.exclude, reader.row_filter.keep
    is_rating = pl.col("rating").is_between(1, 5)
    day = pl.col("time").str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False)
    is_day = day.is_not_null()
    for scenario, (domain, path) in enumerate(zip(DOMAINS, reviews, strict=True)):
        columns = {"user_id": int, f"{domain}_id": int, "rating": float | None, "time": str}
        unrated = f"{path}: a review without a rating"
        for frame in reader.csv(path, columns, TABS):
            frame = exclude(frame, pl.col("rating").is_null(), unrated)
            frame = keep(frame, "rating", is_rating, path, "be from 1 to 5")
            frame = keep(frame, "time", is_day, path, "begin with a date such as 2014-05-31")
            rows = frame.select(
                "row",
                user_key="user_id",
                item_key=pl.format(f"{domain} {{}}", f"{domain}_id"),
                timestamp=day.cast(pl.Int64) * SECONDS_A_DAY,
                scenario=pl.lit(scenario),
                label=(pl.col("rating") > 3).cast(pl.Int64),
            )
            yield Chunk(str(path), rows)


def _users(path: Path, reader: TextReader) -> pl.DataFrame:
    # The user_id of a review is the UID of users_cleaned.txt.
    columns = {"UID": int, "living_place": str | None, "join_time": str | None}
    users = reader.table(reader.csv(path, columns, TABS), path, "UID", "user_key")
    return users.select("user_key", "living_place", join_month=pl.col("join_time").str.slice(0, 7))


def _movies(path: Path, reader: TextReader) -> pl.DataFrame:
    columns = {"UID": int, **dict.fromkeys(MOVIE_TEXTS, str | None)}
    movies = reader.table(reader.csv(path, columns, TABS), path, "UID", "item_key")
    return movies.with_columns(item_key=pl.format("movie {}", "item_key"))
