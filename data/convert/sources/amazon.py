"""Amazon reviews of 2014, 2018 or 2023 as they are published: one scenario a product category."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from msrec.data.convert.raw_tables import (
    ID_FEATURES,
    Chunk,
    Feature,
    Published,
    RawTables,
    star_labels,
)
from msrec.data.convert.row_filter import RowFilter
from msrec.data.convert.sources.text_files import (
    INTEGER,
    NUMBER,
    TEXT,
    TEXTS,
    Column,
    Report,
    first_of_each,
    read_json_lines,
    read_lines,
)
from msrec.data.schema import Scenario, TextFields

PUBLISHED_CATEGORIES = ("Beauty", "Clothing_Shoes_and_Jewelry", "Health_and_Personal_Care")
PUBLISHED = (
    Published(
        "Amazon 2014 5-core, Scenario-Wise-Rec, arXiv 2412.17374",
        {
            "Beauty": (198_502, 22_363, 12_101),
            "Clothing_Shoes_and_Jewelry": (278_677, 39_387, 23_033),
            "Health_and_Personal_Care": (346_355, 38_609, 18_534),
        },
    ),
)
FEATURES = (*ID_FEATURES, Feature("brand", "item"), Feature("category", "item"))
SITE = "https://jmcauley.ucsd.edu/data/amazon, https://nijianmo.github.io/amazon or "
SITE += "https://amazon-reviews-2023.github.io"


@dataclass(frozen=True)
class Format:
    """Names that one release gives to files and fields."""

    year: int
    reviews: str
    """Pattern of a review file's name; group 1 is the category."""
    meta: str
    user: str
    item: str
    rating: str
    time: str
    unit: str
    brand: str
    category: str


FORMATS = (
    Format(
        *(2014, r"reviews_(.+?)(?:_5)?\.json(?:\.gz)?", "meta_{}.json"),
        *("reviewerID", "asin", "overall", "unixReviewTime", "s", "brand", "categories"),
    ),
    Format(
        *(2023, r"(?!meta_)(.+?)\.jsonl(?:\.gz)?", "meta_{}.jsonl"),
        *("user_id", "parent_asin", "rating", "timestamp", "ms", "store", "categories"),
    ),
    Format(
        *(2018, r"(?!meta_|reviews_)(.+?)(?:_5)?\.json(?:\.gz)?", "meta_{}.json"),
        *("reviewerID", "asin", "overall", "unixReviewTime", "s", "brand", "category"),
    ),
)


def read_amazon(
    folder: Path,
    faults: RowFilter,
    report: Report | None = None,
    categories: Sequence[str] = (),
    above: float = 3.0,
) -> RawTables:
    """Read the review files of one release, and the meta file of each category where there is one.

    The label is a rating above `above`; the other stars are further labels. Users have no features
    but their id; items have brand and category path. An item that no meta file describes is kept,
    with these missing.

    Args:
        folder: with reviews_Beauty_5.json.gz and meta_Beauty.json.gz (2014), Beauty_5.json.gz and
            meta_Beauty.json.gz (2018), or Beauty.jsonl.gz and meta_Beauty.jsonl.gz (2023), packed
            or not.
        faults: decides what happens to a bad line.
        report: told the bytes read.
        categories: names such as Beauty, in the order of the scenarios; empty means all, sorted.
        above: from which rating on, exclusively, a review is positive.

    Raises:
        FileNotFoundError: no review file is there, or not that of a category.
        ValueError: files of several releases are there, or a line is bad; names file and row.

    Source:
        McAuley et al., SIGIR 2015; Ni et al., EMNLP 2019; Hou et al., arXiv 2403.03952.
    """
    form, found = _release(folder)
    missing = [name for name in categories if name not in found]
    if missing:
        raise FileNotFoundError(
            f"{folder} must hold a review file for each category; {', '.join(missing)} has none. "
            f"Found: {', '.join(sorted(found))}."
        )
    names = list(categories) or sorted(found)
    reviews = {name: found[name] for name in names}
    metas = {name: _meta(folder, form, name) for name in names}
    without = [name for name, path in metas.items() if path is None]
    items = _items([path for path in metas.values() if path], form, faults, report)
    same = {*names} == {*PUBLISHED_CATEGORIES} and form.year == 2014 and above == 3
    return RawTables(
        name=f"amazon-{form.year}",
        description="A shop whose customers rate what they bought from one to five stars.",
        interactions=_interactions(reviews, form, above, faults, report),
        users=pl.DataFrame(schema={"user_key": pl.String}),
        items=items,
        scenarios=[
            Scenario(name=name, description=f"The shop's department {name.replace('_', ' ')}.")
            for name in names
        ],
        features=FEATURES,
        labels=tuple(star_labels(above)),
        timestamp="timestamp",
        timestamp_unit="ms" if form.unit == "ms" else "s",
        text=TextFields(item_title="title", item_attributes=["brand", "category"]),
        files={"interactions": str(folder), "users": str(folder), "items": str(folder)},
        notes=(
            f"release of {form.year}: {', '.join(path.name for path in reviews.values())}",
            *([f"no meta file, so no titles: {', '.join(without)}"] if without else []),
        ),
        unknown_keys="add",
        published=PUBLISHED if same else (),
        unlike_published=""
        if same
        else f"the published ones are {', '.join(PUBLISHED_CATEGORIES)} of 2014, ratings above 3",
    )


def _release(folder: Path) -> tuple[Format, dict[str, Path]]:
    """The release whose review files are there, and these by category."""
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    for form in FORMATS:
        matches = [(re.fullmatch(form.reviews, name), name) for name in names]
        found: dict[str, Path] = {}
        for match, name in matches:
            if match and match[1] in found:
                raise ValueError(
                    f"{folder} must hold one review file for each category; found "
                    f"{found[match[1]].name} and {name}. Move one away."
                )
            if match:
                found[match[1]] = folder / name
        if found:
            return form, found
    raise FileNotFoundError(
        f"{folder} must hold review files such as reviews_Beauty_5.json.gz, Beauty_5.json.gz or "
        f"Beauty.jsonl.gz, from {SITE}; it holds none."
    )


def _meta(folder: Path, form: Format, category: str) -> Path | None:
    name = form.meta.format(category)
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _interactions(
    reviews: dict[str, Path], form: Format, above: float, faults: RowFilter, report: Report | None
) -> Iterator[Chunk]:
    columns = [Column(form.user, TEXT), Column(form.item, TEXT)]
    columns += [Column(form.rating, NUMBER), Column(form.time, INTEGER)]
    for number, path in enumerate(reviews.values()):
        for frame in read_json_lines(path, columns, faults, report):
            rating = frame[form.rating]
            args = (rating, str(path), "be from 1 to 5", "Correct it.")
            frame = faults.keep(frame, ~rating.is_between(1, 5), *args)
            yield Chunk(
                str(path),
                frame.select(
                    "row",
                    user_key=form.user,
                    item_key=form.item,
                    timestamp=form.time,
                    scenario=pl.lit(number),
                    **{
                        name: (pl.col(form.rating) > stars).cast(pl.Int64)
                        for name, stars in star_labels(above).items()
                    },
                ),
            )


def _items(
    paths: Sequence[Path], form: Format, faults: RowFilter, report: Report | None
) -> pl.DataFrame:
    schema = dict.fromkeys(("item_key", "title", "brand", "category"), pl.String())
    frames = [pl.DataFrame(schema=schema)]
    for path in paths:
        reader = _literal_meta if form.year == 2014 else _json_meta
        for frame in reader(path, form, faults, report):
            path_of = pl.col(form.category).list.join(" > ")
            frames.append(
                frame.select(
                    item_key=form.item,
                    title=_text("title"),
                    brand=_text(form.brand),
                    category=pl.when(path_of != "").then(path_of),
                )
            )
    where = Path(", ".join(path.name for path in paths))
    return first_of_each(pl.concat(frames), "item_key", where, faults)


def _text(name: str) -> pl.Expr:
    stripped = pl.col(name).str.strip_chars()
    return pl.when(stripped != "").then(stripped)


def _json_meta(
    path: Path, form: Format, faults: RowFilter, report: Report | None
) -> Iterator[pl.DataFrame]:
    columns = [Column(form.item, TEXT), Column("title", TEXT, optional=True)]
    columns += [
        Column(form.brand, TEXT, optional=True),
        Column(form.category, TEXTS, optional=True),
    ]
    yield from read_json_lines(path, columns, faults, report)


def _literal_meta(
    path: Path, form: Format, faults: RowFilter, report: Report | None
) -> Iterator[pl.DataFrame]:
    """The meta files of 2014 are Python literals, not JSON; a literal can run no code."""
    kinds = {form.item: pl.String, "title": pl.String, form.brand: pl.String}
    schema = kinds | {form.category: pl.List(pl.String)}
    for first_row, lines in read_lines(path, report):
        rows, bad = [], []
        for row, line in enumerate(lines, first_row):
            try:
                value = ast.literal_eval(line)
                paths = value.get(form.category) or [[]]
                rows.append([value.get(name) for name in kinds] + [[str(x) for x in paths[0]]])
            except (ValueError, SyntaxError, AttributeError, TypeError, IndexError):
                bad.append(row)
        if bad:
            must = f"{path}: each line must be one Python dictionary"
            sentence = f"{must}; row {bad[0]} is not ({len(bad)} such of {len(lines)})."
            faults.unreadable(len(bad), must, f"{sentence} Mend the line or take it out.")
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        args = (frame[form.item], str(path), "be there", "Mend the line or take it out.")
        yield faults.keep(frame, frame[form.item].is_null(), *args)
