"""MovieLens-1M as published: ratings.dat, users.dat, movies.dat."""

import re
from pathlib import Path
from typing import Literal

import polars as pl

from msrec.data.convert.raw_tables import (
    ID_FEATURES,
    Feature,
    RawTables,
    star_labels,
)
from msrec.data.convert.row_filter import STRICT
from msrec.data.convert.sources.text_blocks import CsvFormat
from msrec.data.convert.sources.text_reader import Columns, TextReader, required_files
from msrec.data.schema import Scenario, TextFields

FILES = ("ratings.dat", "users.dat", "movies.dat")
SITE = "https://grouplens.org/datasets/movielens/1m"
AGES = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
OCCUPATIONS = (
    "other|academic/educator|artist|clerical/admin|college/grad student|customer service|"
    "doctor/health care|executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|"
    "retired|sales/marketing|scientist|self-employed|technician/engineer|tradesman/craftsman|"
    "unemployed|writer"
).split("|")

Rules = dict[str, tuple[str, tuple[int | str, ...]]]
"""Scenario -> its description, and the ages or first genres that belong to it."""
AGE_SCENARIOS: Rules = {
    "age<25": ("Films rated by viewers younger than 25.", (1, 18)),
    "age25-34": ("Films rated by viewers aged 25 to 34.", (25,)),
    "age35+": ("Films rated by viewers aged 35 and older.", (35, 45, 50, 56)),
}
GENRE_SCENARIOS: Rules = {
    "drama": ("Drama films.", ("Drama",)),
    "comedy": ("Comedy films.", ("Comedy",)),
    "action": ("Action films.", ("Action",)),
    "adventure_family": (
        "Adventure, animation, children's and fantasy films.",
        ("Adventure", "Animation", "Children's", "Fantasy"),
    ),
    "thriller_crime_horror": (
        "Thriller, crime, film noir, horror and mystery films.",
        ("Crime", "Film-Noir", "Horror", "Mystery", "Thriller"),
    ),
    "other": (
        "Documentaries, musicals, romance, science fiction, war films and westerns.",
        ("Documentary", "Musical", "Romance", "Sci-Fi", "War", "Western"),
    ),
}
RULES = {"age": AGE_SCENARIOS, "genre": GENRE_SCENARIOS}
PUBLISHED = {
    "MovieLens-1M, Scenario-Wise-Rec, arXiv 2412.17374": {
        "age<25": (210_747, 1_325, 3_429),
        "age25-34": (395_556, 2_096, 3_508),
        "age35+": (393_906, 2_619, 3_595),
    },
}
FEATURES = (
    *ID_FEATURES,
    Feature("gender", "user"),
    Feature("age", "user"),
    Feature("occupation", "user"),
    Feature("zip_code", "user"),
    Feature("genres", "item", "multi"),
    Feature("year", "item"),
)
_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
_OTHER_TITLE = re.compile(r"\s*\([^()]*\)\s*$")
_ARTICLE = re.compile(r"^(.*), (The|A|An|Les|La|Le|Das|Der|Die|El|Il|L')$")


def read_movielens(
    folder: Path, reader: TextReader, scenario: Literal["age", "genre"] = "age"
) -> RawTables:
    """Reads the three files.

    The first label is a rating above 3. The scenario is a group of the user's age, or of the first
    genre of the film.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a row is bad; names file, column and row (from 0).

    Source:
        Harper and Konstan, TiiS 2015; age scenarios as in Scenario-Wise-Rec (arXiv 2412.17374).
    """
    if scenario not in ("age", "genre"):
        raise ValueError(f"movielens scenario must be 'age' or 'genre'; got {scenario!r}.")
    by_age = scenario == "age"
    ratings, users_file, movies = required_files(folder, "MovieLens-1M", FILES, SITE)
    users, items = _users(users_file, reader), _items(movies, reader)
    groups = _groups(users, items, scenario, users_file if by_age else movies)
    return RawTables(
        name="ml1m" if by_age else "ml1m-genre",
        description="MovieLens-1M: films rated by viewers; liked means more than 3 of 5 stars.",
        interactions=_interactions(ratings, groups, reader),
        users=users,
        items=items,
        scenarios=[Scenario(name=n, description=text) for n, (text, _) in RULES[scenario].items()],
        features=FEATURES,
        labels=tuple(star_labels(3)),
        timestamp="timestamp",
        timestamp_unit="s",
        text=TextFields(
            item_title="title",
            item_attributes=["genres", "year"],
            user_attributes=["gender", "age_name", "occupation_name"],
        ),
        files={"interactions": str(ratings), "users": str(users_file), "items": str(movies)},
        published=PUBLISHED if by_age else {},
        differs_from_published="" if by_age else "the published ones are age groups",
    )


def split_title(raw: str) -> tuple[str, int | None]:
    """Returns the readable title and the year; None if there is no year.

    Example:
        >>> split_title("Postino, Il (The Postman) (1994)")
        ('Il Postino', 1994)
    """
    year = _YEAR.search(raw)
    title = _YEAR.sub("", raw)
    title = _OTHER_TITLE.sub("", title) or title
    article = _ARTICLE.match(title)
    if article:
        joint = "" if article[2].endswith("'") else " "
        title = f"{article[2]}{joint}{article[1]}"
    return title, int(year[1]) if year else None


def _groups(
    users: pl.DataFrame, items: pl.DataFrame, scenario: str, location: Path
) -> pl.DataFrame:
    """Returns the scenario of each user, by age, or of each item, by its first genre."""
    numbers = {v: i for i, (_, values) in enumerate(RULES[scenario].values()) for v in values}
    if scenario == "age":
        table = users.select("user_key", "age")
    else:
        table = items.select("item_key", genre=pl.col("genres").list.first())
    is_known = pl.col(scenario).is_in(list(numbers))
    STRICT.keep(table, scenario, is_known, location, f"be a MovieLens {scenario}")
    number = pl.col(scenario).replace_strict(numbers, return_dtype=pl.Int32)
    return table.select(pl.first(), scenario=number)


def _interactions(path: Path, groups: pl.DataFrame, reader: TextReader) -> pl.DataFrame:
    columns = dict.fromkeys(("user_key", "item_key", "rating", "timestamp"), int)
    rows = _read(path, columns, reader)
    is_rating = pl.col("rating").is_between(1, 5)
    rows = reader.row_filter.keep(rows, "rating", is_rating, path, "be from 1 to 5")
    labels = {n: (pl.col("rating") > s).cast(pl.Float32) for n, s in star_labels(3).items()}
    rows = rows.join(groups, on=groups.columns[0], how="left", maintain_order="left")
    # A null scenario means an unknown key, which the conversion refuses by name.
    return rows.with_columns(pl.col("scenario").fill_null(0), **labels).drop("rating")


def _users(path: Path, reader: TextReader) -> pl.DataFrame:
    columns = {"user_key": int, "gender": str, "age": int, "occupation": int, "zip_code": str}
    users = _read(path, columns, reader)
    for column, names in (("age", AGES), ("occupation", dict(enumerate(OCCUPATIONS)))):
        is_known, must = pl.col(column).is_in(list(names)), "be a MovieLens code"
        users = reader.row_filter.keep(users, column, is_known, path, must)
        name = pl.col(column).replace_strict(names, return_dtype=pl.String)
        users = users.with_columns(name.alias(f"{column}_name"))
    return users


def _items(path: Path, reader: TextReader) -> pl.DataFrame:
    items = _read(path, {"item_key": int, "title": str, "genres": str}, reader)
    schema = {"title": pl.String, "year": pl.Int64}
    titles = pl.DataFrame([split_title(t) for t in items["title"]], schema=schema, orient="row")
    return items.with_columns(*titles, genres=pl.col("genres").str.split("|"))


def _read(path: Path, columns: Columns, reader: TextReader) -> pl.DataFrame:
    form = CsvFormat(separator="::", quote=None, header=list(columns), encoding="latin-1")
    return pl.concat(reader.csv(path, columns, form))
