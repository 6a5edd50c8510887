"""Douban as it is published: what the same people think of books, music and films."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, Chunk, Feature, Published, RawTables
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources.text_files import (
    NUMBER,
    TEXT,
    Column,
    Report,
    first_of_each,
    read_csv,
)
from msrec.data.schema import Scenario, TextFields

DOMAINS = {
    "book": "Books that people have read and rated.",
    "music": "Records that people have heard and rated.",
    "movie": "Films that people have seen and rated.",
}
PUBLISHED = (
    Published(
        "Douban, Scenario-Wise-Rec, arXiv 2412.17374",
        {
            "book": (227_251, 2_212, 95_872),
            "music": (179_847, 1_820, 79_878),
            "movie": (1_278_401, 2_712, 34_893),
        },
    ),
)
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


def read_douban(folder: Path, faults: RowFilter, report: Report | None = None) -> RawTables:
    """Read the three review files, users_cleaned and movies_cleaned .txt.

    The label is a rating above 3 of 5; a review without a rating has no label and is left out and
    counted. Items are `book 7`, `music 7`, `movie 7`: the files number them apart. Only films have
    texts: what people wrote of a book or a record would tell the answer.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a column is missing or a row is bad; names file, column and row.

    Source:
        Zhu et al., IJCAI 2020 (GA-DTCDR); tab-separated files as they stand on Kaggle
        (fengzhujoey/douban-datasetratingreviewside-information).
    """
    users, movies = folder / "users_cleaned.txt", folder / "movies_cleaned.txt"
    reviews = {domain: folder / f"{domain}reviews_cleaned.txt" for domain in DOMAINS}
    for path in (*reviews.values(), users, movies):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} must exist: Douban is bookreviews_cleaned.txt, musicreviews_cleaned.txt, "
                "moviereviews_cleaned.txt, users_cleaned.txt and movies_cleaned.txt, from Kaggle "
                "(fengzhujoey/douban-datasetratingreviewside-information)."
            )
    return RawTables(
        name="douban",
        description="A site where people rate the books they read, the records they hear and the "
        "films they see; four or five of five stars is liked.",
        interactions=_interactions(reviews, faults, report),
        users=_users(users, faults, report),
        items=_movies(movies, faults, report),
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


def _interactions(
    reviews: dict[str, Path], faults: RowFilter, report: Report | None
) -> Iterator[Chunk]:
    for number, (domain, path) in enumerate(reviews.items()):
        columns = [
            Column("user_id"),
            Column(f"{domain}_id"),
            Column("rating", NUMBER, optional=True),
        ]
        columns.append(Column("time", TEXT))
        for frame in read_csv(path, columns, faults, report, separator="\t"):
            reason = f"{path}: a review without a rating"
            rated = faults.exclude(frame, frame["rating"].is_null(), reason)
            known = rated["rating"].is_between(1, 5)
            args = (rated["rating"], str(path), "be from 1 to 5", "Correct it.")
            rated = faults.keep(rated, ~known, *args)
            days = rated["time"].str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False)
            args = (rated["time"], str(path), "begin with a date such as 2014-05-31", "Correct it.")
            rated = rated.with_columns(timestamp=days.cast(pl.Int64) * SECONDS_A_DAY)
            rated = faults.keep(rated, days.is_null(), *args)
            yield Chunk(
                str(path),
                rated.select(
                    "row",
                    "timestamp",
                    user_key="user_id",
                    item_key=pl.format(f"{domain} {{}}", f"{domain}_id"),
                    scenario=pl.lit(number),
                    label=(pl.col("rating") > 3).cast(pl.Int64),
                ),
            )


def _users(path: Path, faults: RowFilter, report: Report | None) -> pl.DataFrame:
    texts = [Column(name, TEXT, optional=True) for name in ("living_place", "join_time")]
    frames = read_csv(path, [Column("UID"), *texts], faults, report, separator="\t")
    frame = first_of_each(pl.concat(frames), "UID", path, faults)
    # Reviews name a user by what users_cleaned.txt calls UID.
    month = pl.col("join_time").str.slice(0, 7)
    return frame.select("living_place", user_key="UID", join_month=month)


def _movies(path: Path, faults: RowFilter, report: Report | None) -> pl.DataFrame:
    texts = [Column(name, TEXT, optional=True) for name in MOVIE_TEXTS]
    frames = read_csv(path, [Column("UID"), *texts], faults, report, separator="\t")
    frame = first_of_each(pl.concat(frames), "UID", path, faults)
    return frame.select(*MOVIE_TEXTS, item_key=pl.format("movie {}", "UID"))
