"""MovieLens-1M in its original form: ratings.dat, users.dat, movies.dat."""

import re
from pathlib import Path
from typing import Literal

import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, Feature, Published, RawTables, star_labels
from msrec.data.convert.row_filter import refuse
from msrec.data.schema import Scenario, TextFields

AGES = {
    1: "under 18",
    18: "18-24",
    25: "25-34",
    35: "35-44",
    45: "45-49",
    50: "50-55",
    56: "56+",
}
OCCUPATIONS = (
    "other|academic/educator|artist|clerical/admin|college/grad student|customer service|"
    "doctor/health care|executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|"
    "retired|sales/marketing|scientist|self-employed|technician/engineer|tradesman/craftsman|"
    "unemployed|writer"
).split("|")

AGE_SCENARIOS = {
    "age<25": ("Films rated by viewers younger than 25.", (1, 18)),
    "age25-34": ("Films rated by viewers aged 25 to 34.", (25,)),
    "age35+": ("Films rated by viewers aged 35 and older.", (35, 45, 50, 56)),
}
GENRE_SCENARIOS = {
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
PUBLISHED = (
    Published(
        "MovieLens-1M, Scenario-Wise-Rec, arXiv 2412.17374",
        {
            "age<25": (210_747, 1_325, 3_429),
            "age25-34": (395_556, 2_096, 3_508),
            "age35+": (393_906, 2_619, 3_595),
        },
    ),
)
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


def read_movielens(folder: Path | str, scenario: Literal["age", "genre"] = "age") -> RawTables:
    """Read the three files; label = rating above 3, scenario by the user's age or the first genre.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a line that is not of the format; names file, column and row (from 0).

    Source:
        Harper and Konstan, TiiS 2015; age scenarios as in Scenario-Wise-Rec (arXiv 2412.17374).
    """
    if scenario not in ("age", "genre"):
        raise ValueError(f"movielens scenario must be 'age' or 'genre'; got {scenario!r}.")
    files = {"interactions": "ratings.dat", "users": "users.dat", "items": "movies.dat"}
    paths = {table: Path(folder) / name for table, name in files.items()}
    users, items = _users(paths["users"]), _items(paths["items"])
    rows = _fields(paths["interactions"], ["user_key", "item_key", "rating", "timestamp"])
    for column in rows.columns:
        rows = _integers(rows, column, paths["interactions"])
    rated = rows["rating"].is_between(1, 5)
    refuse(~rated, rows["rating"], str(paths["interactions"]), "be from 1 to 5", "Correct it.")
    rules = AGE_SCENARIOS if scenario == "age" else GENRE_SCENARIOS
    grouped = _grouped(users, items, scenario, paths)
    above = star_labels(3)
    rows = rows.with_columns(
        **{name: (pl.col("rating") > stars).cast(pl.Float32) for name, stars in above.items()}
    ).join(grouped, on=grouped.columns[0], how="left", maintain_order="left")
    return RawTables(
        name="ml1m" if scenario == "age" else "ml1m-genre",
        description="MovieLens-1M: films rated by viewers; liked means more than 3 of 5 stars.",
        # null only where the key is unknown, which the writer refuses by name
        interactions=rows.drop("rating").with_columns(pl.col("scenario").fill_null(0)),
        users=users,
        items=items,
        scenarios=[Scenario(name=n, description=d) for n, (d, _) in rules.items()],
        features=FEATURES,
        labels=tuple(above),
        timestamp="timestamp",
        timestamp_unit="s",
        text=TextFields(
            item_title="title",
            item_attributes=["genres", "year"],
            user_attributes=["gender", "age_name", "occupation_name"],
        ),
        files={table: str(path) for table, path in paths.items()},
        published=PUBLISHED if scenario == "age" else (),
        unlike_published="" if scenario == "age" else "the published ones are age groups",
    )


def split_title(raw: str) -> tuple[str, int | None]:
    """The readable title and the year.

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


def _grouped(
    users: pl.DataFrame, items: pl.DataFrame, scenario: str, paths: dict[str, Path]
) -> pl.DataFrame:
    """Key -> scenario; an age or genre that no scenario names is refused."""
    if scenario == "age":
        keys, values, rules = users["user_key"], users["age"], AGE_SCENARIOS
        where, must = paths["users"], f"be one of {', '.join(map(str, AGES))}"
    else:
        keys, rules = items["item_key"], GENRE_SCENARIOS  # type: ignore[assignment]
        values, where = items["genres"].list.first().alias("genres"), paths["items"]
        must = "begin with a MovieLens genre"
    number = {value: i for i, (_, group) in enumerate(rules.values()) for value in group}
    found = values.replace_strict(
        list(number), list(number.values()), default=None, return_dtype=pl.Int32
    )
    refuse(found.is_null(), values, str(where), must, "Correct it.")
    return pl.DataFrame([keys, found.alias("scenario")])


def _users(path: Path) -> pl.DataFrame:
    users = _fields(path, ["user_key", "gender", "age", "occupation", "zip_code"])
    for column in ("user_key", "age", "occupation"):
        users = _integers(users, column, path)
    for column, names in (("age", AGES), ("occupation", dict(enumerate(OCCUPATIONS)))):
        known = users[column].is_in(list(names))
        refuse(~known, users[column], str(path), "be a MovieLens code", "Correct it.")
        users = users.with_columns(
            pl.col(column)
            .replace_strict(list(names), list(names.values()), return_dtype=pl.String)
            .alias(f"{column}_name")
        )
    return users


def _items(path: Path) -> pl.DataFrame:
    rows = []
    for number, line in enumerate(_lines(path)):
        key, _, rest = line.partition("::")
        title, _, genres = rest.rpartition("::")
        if not (key.isdecimal() and title and genres):
            raise ValueError(
                f"{path}: each row must be number::title::genres; found {line[:80]!r} in row "
                f"{number}. Take the file of ml-1m.zip unchanged."
            )
        rows.append((int(key), *split_title(title), genres.split("|")))
    schema = {"item_key": pl.Int64, "title": pl.String, "year": pl.Int64}
    return pl.DataFrame(rows, schema=schema | {"genres": pl.List(pl.String)}, orient="row")


def _fields(path: Path, names: list[str]) -> pl.DataFrame:
    """Columns of strings, each row split at `::`."""
    lines = pl.Series("line", _lines(path))
    fields = lines.str.splitn("::", len(names) + 1).struct.unnest()
    whole = fields[:, -2].is_not_null() & fields[:, -1].is_null()
    must = f"be {len(names)} fields between '::' ({', '.join(names)})"
    refuse(~whole, lines, str(path), must, "Take the file of ml-1m.zip unchanged.")
    return fields[:, :-1].rename(dict(zip(fields.columns, names, strict=False)))


def _integers(frame: pl.DataFrame, column: str, path: Path) -> pl.DataFrame:
    numbers = frame[column].cast(pl.Int64, strict=False)
    refuse(numbers.is_null(), frame[column], str(path), "be a whole number", "Repair the row.")
    return frame.with_columns(numbers)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must exist: MovieLens-1M is ratings.dat, users.dat and movies.dat, from "
            "https://grouplens.org/datasets/movielens/1m."
        )
    return path.read_text(encoding="latin-1").removesuffix("\n").split("\n")
