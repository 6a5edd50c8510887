"""Amazon reviews of 2014, 2018 or 2023 as published; each product category is a scenario."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from msrec.data.convert.raw_tables import (
    ID_FEATURES,
    Chunk,
    Feature,
    RawTables,
    star_labels,
)
from msrec.data.convert.sources.json_lines import without_surrogates
from msrec.data.convert.sources.text_reader import TextReader, raw_file
from msrec.data.schema import Scenario, TextFields

PUBLISHED_CATEGORIES = ("Beauty", "Clothing_Shoes_and_Jewelry", "Health_and_Personal_Care")
PUBLISHED = {
    "Amazon 2014 5-core, Scenario-Wise-Rec, arXiv 2412.17374": {
        "Beauty": (198_502, 22_363, 12_101),
        "Clothing_Shoes_and_Jewelry": (278_677, 39_387, 23_033),
        "Health_and_Personal_Care": (346_355, 38_609, 18_534),
    },
}
FEATURES = (*ID_FEATURES, Feature("brand", "item"), Feature("category", "item"))
SITE = (
    "https://jmcauley.ucsd.edu/data/amazon, https://nijianmo.github.io/amazon or "
    "https://amazon-reviews-2023.github.io"
)


@dataclass(frozen=True)
class Release:
    """Names that a release gives to its files and fields."""

    year: int
    reviews: str
    """Pattern of the name of a review file; group 1 is the category."""
    meta: str
    user: str
    item: str
    rating: str
    time: str
    time_unit: Literal["s", "ms"]
    brand: str
    category: str


RELEASE_2014 = Release(
    year=2014,
    reviews=r"reviews_(.+?)(?:_5)?\.json(?:\.gz)?",
    meta="meta_{}.json",
    user="reviewerID",
    item="asin",
    rating="overall",
    time="unixReviewTime",
    time_unit="s",
    brand="brand",
    category="categories",
)
RELEASE_2018 = replace(
    RELEASE_2014,
    year=2018,
    reviews=r"(?!meta_|reviews_)(.+?)(?:_5)?\.json(?:\.gz)?",
    category="category",
)
RELEASE_2023 = Release(
    year=2023,
    reviews=r"(?!meta_)(.+?)\.jsonl(?:\.gz)?",
    meta="meta_{}.jsonl",
    user="user_id",
    item="parent_asin",
    rating="rating",
    time="timestamp",
    time_unit="ms",
    brand="store",
    category="categories",
)


def read_amazon(
    folder: Path, reader: TextReader, categories: Sequence[str] = (), above: float = 3.0
) -> RawTables:
    """Reads the review files of one release, and the meta file of each category that has one.

    The first label is a rating above `above`; other thresholds are further labels. Users have no
    features but their id; items have a brand and a category path. An item without a row in the meta
    files is kept; its features are missing.

    Args:
        folder: with reviews_Beauty_5.json and meta_Beauty.json (2014), Beauty_5.json and
            meta_Beauty.json (2018), or Beauty.jsonl and meta_Beauty.jsonl (2023); each may be .gz.
        reader: reads the files.
        categories: names such as Beauty, in the order of the scenarios; empty means all, sorted.
        above: the rating that a positive review exceeds.

    Raises:
        FileNotFoundError: there is no review file, or none of a category.
        ValueError: a category has two review files, or a line is bad; names file and row.

    Source:
        McAuley et al., SIGIR 2015; Ni et al., EMNLP 2019; Hou et al., arXiv 2403.03952.
    """
    release, files = _release(folder)
    missing = [name for name in categories if name not in files]
    if missing:
        raise FileNotFoundError(
            f"{folder} must hold a review file for each category; {', '.join(missing)} has none. "
            f"Found: {', '.join(sorted(files))}."
        )
    reviews = {name: files[name] for name in categories or sorted(files)}
    metas = {name: _meta_file(folder, release, name) for name in reviews}
    untitled = [name for name, path in metas.items() if path is None]
    notes = [f"release of {release.year}: {', '.join(path.name for path in reviews.values())}"]
    if untitled:
        notes.append(f"no meta file, so no titles: {', '.join(untitled)}")
    is_published = {*reviews} == {*PUBLISHED_CATEGORIES} and release is RELEASE_2014 and above == 3
    difference = (
        f"the published ones are {', '.join(PUBLISHED_CATEGORIES)} of 2014, ratings above 3"
    )
    return RawTables(
        name=f"amazon-{release.year}",
        description="A shop whose customers rate what they bought from one to five stars.",
        interactions=_interactions(list(reviews.values()), release, above, reader),
        users=pl.DataFrame(schema={"user_key": pl.String}),
        items=_items([path for path in metas.values() if path], release, reader),
        scenarios=[
            Scenario(name=name, description=f"The shop's department {name.replace('_', ' ')}.")
            for name in reviews
        ],
        features=FEATURES,
        labels=tuple(star_labels(above)),
        timestamp="timestamp",
        timestamp_unit=release.time_unit,
        text=TextFields(item_title="title", item_attributes=["brand", "category"]),
        files=dict.fromkeys(("interactions", "users", "items"), str(folder)),
        notes=tuple(notes),
        unknown_keys="add",
        published=PUBLISHED if is_published else {},
        differs_from_published="" if is_published else difference,
    )


def _release(folder: Path) -> tuple[Release, dict[str, Path]]:
    """Returns the first release that has review files in the folder, and these by category."""
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    for release in (RELEASE_2014, RELEASE_2023, RELEASE_2018):
        files: dict[str, Path] = {}
        for name in names:
            match = re.fullmatch(release.reviews, name)
            if match and match[1] in files:
                raise ValueError(
                    f"{folder} must hold one review file for each category; found "
                    f"{files[match[1]].name} and {name}. Move one away."
                )
            if match:
                files[match[1]] = folder / name
        if files:
            return release, files
    raise FileNotFoundError(
        f"{folder} must hold review files such as reviews_Beauty_5.json.gz, Beauty_5.json.gz or "
        f"Beauty.jsonl.gz, from {SITE}; it holds none."
    )


def _meta_file(folder: Path, release: Release, category: str) -> Path | None:
    return raw_file(folder, release.meta.format(category))


def _interactions(
    reviews: Sequence[Path], release: Release, above: float, reader: TextReader
) -> Iterator[Chunk]:
    columns = {release.user: str, release.item: str, release.rating: float, release.time: int}
    rating = pl.col(release.rating)
    labels = {n: (rating > stars).cast(pl.Int64) for n, stars in star_labels(above).items()}
    for scenario, path in enumerate(reviews):
        for frame in reader.json_lines(path, columns):
            is_rating, must = rating.is_between(1, 5), "be from 1 to 5"
            frame = reader.row_filter.keep(frame, release.rating, is_rating, path, must)
            rows = frame.select(
                "row",
                user_key=release.user,
                item_key=release.item,
                timestamp=release.time,
                scenario=pl.lit(scenario),
                **labels,
            )
            yield Chunk(str(path), rows)


def _items(paths: Sequence[Path], release: Release, reader: TextReader) -> pl.DataFrame:
    names = ("item_key", "title", "brand", "category")
    frames = [pl.DataFrame(schema=dict.fromkeys(names, pl.String()))]
    for path in paths:
        for frame in _meta_rows(path, release, reader):
            category = pl.col(release.category).list.join(" > ")
            frames.append(
                frame.select(
                    item_key=release.item,
                    title=_stripped("title"),
                    brand=_stripped(release.brand),
                    category=pl.when(category != "").then(category),
                )
            )
    location = ", ".join(path.name for path in paths)
    return reader.table(frames, location, "item_key", "item_key")


def _stripped(column: str) -> pl.Expr:
    stripped = pl.col(column).str.strip_chars()
    return pl.when(stripped != "").then(stripped)


def _meta_rows(path: Path, release: Release, reader: TextReader) -> Iterator[pl.DataFrame]:
    texts = (release.item, "title", release.brand)
    if release is not RELEASE_2014:
        columns = {**dict.fromkeys(texts, str | None), release.category: list[str] | None}
        is_path = pl.col(release.category).list.eval(pl.element().str.contains(r"^\[.*\]$"))
        is_path = ~is_path.list.any() | is_path.is_null()
        for frame in reader.json_lines(path, {**columns, release.item: str}):
            must = "be a list of strings, as published, and no list of lists"
            yield reader.row_filter.keep(frame, release.category, is_path, path, must)
        return
    schema = {**dict.fromkeys(texts, pl.String()), release.category: pl.List(pl.String)}
    advice = "Correct the line or take it out."
    for first_row, lines in reader.lines(path):
        rows = [_literal_row(line, texts, release.category) for line in lines]
        bad = [f"row {n} {row}" for n, row in enumerate(rows, first_row) if isinstance(row, str)]
        rule = f"{path}: each line must be one Python dictionary"
        reader.row_filter.reject(rule, bad, len(lines), advice)
        good = [row for row in rows if not isinstance(row, str)]
        frame = pl.DataFrame(good, schema=schema, orient="row")
        reader.row_filter.count_replaced(frame, path)
        has_key = pl.col(release.item).is_not_null()
        yield reader.row_filter.keep(frame, release.item, has_key, path, "be there", advice)


def _literal_row(line: str, texts: Sequence[str], category: str) -> list[Any] | str:
    """Reads a line of a meta file of 2014, which is a Python literal.

    A literal cannot run code. The first category path is taken of several. Returns what is wrong
    with the line if it is not as published.
    """
    try:
        tree = ast.parse(line.strip(), mode="eval")
        value = ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return "is not"
    if not isinstance(value, dict):
        return f"is a {type(value).__name__}"
    if isinstance(tree.body, ast.Dict) and len(value) < len(tree.body.keys):
        return "has a key twice"
    paths = value.get(category)
    if not _is_list_of(list, paths) or not all(_is_list_of(str, path) for path in paths or ()):
        return f"holds {paths!r} under {category!r}, which must be a list of lists of strings"
    for name in texts:
        if not isinstance(value.get(name), str | int | float | None):
            return f"holds {value[name]!r} under {name!r}, which must be a string"
    row = [None if value.get(name) is None else str(value[name]) for name in texts]
    first = paths[0] if paths else []
    return [text and without_surrogates(text) for text in row] + [first]


def _is_list_of(kind: type, values: Any) -> bool:
    is_list = isinstance(values, list) and all(isinstance(value, kind) for value in values)
    return values is None or is_list
