"""Plain interactions / items / users Parquet, tables.yaml saying what is what."""

from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from msrec.data.convert.raw_tables import ID_FEATURES, Feature, RawTables, require_columns
from msrec.data.convert.row_filter import refuse
from msrec.data.convert.sources.guess import guess_features, guess_text
from msrec.data.io.validation import first_error, read_yaml
from msrec.data.schema import Scenario, TextFields

MAPPING_FILE = "tables.yaml"
TIMESTAMP = "timestamp"
Kind = Literal["sparse", "multi", "dense", "words"]
"""Of a feature; `words` makes a multi-valued one of the distinct words of a text."""


class TablesMapping(BaseModel):
    """What tables.yaml may say; a field left out is decided by the defaults, and told.

    `scenarios` gives descriptions by name; `user`, `item` and `interaction` name features and
    their kind, as in `user: {age: sparse, balance: dense}`; `title: words` makes the multi-valued
    feature title_words, and leaves the title as it is for prompts. `more_labels: {rating: [1, 2]}`
    adds the labels rating>1 and rating>2, for models that learn them too. `timestamp_unit: s` (or
    ms, since 1970) makes days of interactions' column timestamp.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    description: str | None = None
    scenarios: dict[str, str] = {}
    user: dict[str, Kind] | None = None
    item: dict[str, Kind] | None = None
    interaction: dict[str, Kind] = {}
    more_labels: dict[str, list[float]] = {}
    text: TextFields | None = None
    timestamp_unit: Literal["s", "ms"] | None = None


def read_tables(
    folder: Path | str,
    scenario_column: str = "scenario",
    label: str = "label",
    mapping: Path | str | None = None,
) -> RawTables:
    """Read interactions.parquet (user_id, item_id, scenario, label, ...), items and users.

    The scenario's names come from the column `<scenario_column>_name`, the features from
    tables.yaml or the defaults of `data/convert/sources/guess.py`. Interaction columns are
    features only where tables.yaml says so, and never a rating or a label.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file cannot be read, a column is missing, or tables.yaml is wrong.
    """
    folder = Path(folder)
    paths = {t: folder / f"{t}.parquet" for t in ("interactions", "users", "items")}
    wanted = _mapping(Path(mapping) if mapping else folder / MAPPING_FILE, mapping is not None)
    rows = _frame(paths["interactions"], ["user_id", "item_id", scenario_column, label])
    _refuse_leaks(wanted, label, paths["interactions"])
    scenarios, number, notes = _scenarios(rows, scenario_column, wanted, paths["interactions"])
    if wanted.timestamp_unit is not None:
        require_columns(rows, [TIMESTAMP], f"{paths['interactions']} (its unit is given)")
    users, user_features, user_notes = _side(paths["users"], "user", wanted.user)
    items, item_features, item_notes = _side(paths["items"], "item", wanted.item)
    guessed, text_notes = guess_text(users, items)
    rows, more = _more_labels(rows, wanted, paths["interactions"])
    return RawTables(
        name=wanted.name or folder.resolve().name,
        description=wanted.description or f"The data set {folder.resolve().name}.",
        interactions=_renamed(rows, label, number),
        users=users,
        items=items,
        scenarios=scenarios,
        features=(
            *ID_FEATURES,
            *user_features,
            *item_features,
            *_interaction_features(wanted),
        ),
        labels=("label", *more),
        timestamp=TIMESTAMP if TIMESTAMP in rows.columns else None,
        timestamp_unit=wanted.timestamp_unit,
        text=wanted.text or guessed,
        files={table: str(path) for table, path in paths.items()},
        notes=(*notes, *user_notes, *item_notes, *([] if wanted.text else text_notes)),
    )


def _frame(path: Path, columns: list[str]) -> pl.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must exist: plain tables are interactions, users and items .parquet."
        )
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(
            f"{path} must be a whole Parquet file; {str(error).splitlines()[0]}. Copy it again."
        ) from None
    require_columns(frame, columns, str(path))
    return frame


def _mapping(path: Path, must_exist: bool) -> TablesMapping:
    if not path.is_file():
        if must_exist:
            raise FileNotFoundError(f"{path} must exist: it is the mapping that was asked for.")
        return TablesMapping()
    try:
        return TablesMapping.model_validate(read_yaml(path) or {})
    except ValidationError as error:
        given = error.errors()[0]["input"]
        raise ValueError(
            f"{path}: {first_error(error)}; got {given!r}. Known fields: "
            f"{', '.join(TablesMapping.model_fields)}."
        ) from None


def _interaction_features(wanted: TablesMapping) -> list[Feature]:
    found = []
    for name, kind in wanted.interaction.items():
        if kind == "words":
            raise ValueError(
                f"{MAPPING_FILE}: interaction: words are made of columns of users and items only; "
                f"found {name!r}."
            )
        found.append(Feature(name, "interaction", kind))
    return found


def _refuse_leaks(wanted: TablesMapping, label: str, path: Path) -> None:
    for name in wanted.interaction:
        if name == label or name.startswith(("rating", "label")):
            raise ValueError(
                f"{MAPPING_FILE}: interaction: a feature must not tell the label; found {name!r} "
                f"of {path}. Remove it from the mapping."
            )


def _more_labels(
    rows: pl.DataFrame, wanted: TablesMapping, path: Path
) -> tuple[pl.DataFrame, list[str]]:
    """The rows with a column for each further label, and these columns' names."""
    require_columns(rows, list(wanted.more_labels), str(path))
    found = {}
    for column, thresholds in wanted.more_labels.items():
        if not rows[column].dtype.is_numeric():
            raise ValueError(
                f"{path}: column {column!r} must hold numbers, because {MAPPING_FILE} makes labels "
                f"of it; found {rows[column].dtype}."
            )
        must, advice = "have no null, as a label is made of it", "Remove the row."
        refuse(rows[column].is_null(), rows[column], str(path), must, advice)
        for threshold in thresholds:
            found[f"{column}>{threshold:g}"] = (pl.col(column) > threshold).cast(pl.Float32)
    return rows.with_columns(**found), list(found)


def _scenarios(
    rows: pl.DataFrame, column: str, wanted: TablesMapping, path: Path
) -> tuple[list[Scenario], pl.Series, list[str]]:
    """Scenarios in the order of their codes, and each row's position among them."""
    values = rows[column]
    names = rows[f"{column}_name"] if f"{column}_name" in rows.columns else values
    names = names.cast(pl.String)
    for series in (values, names):
        must = "be a known scenario, not null"
        refuse(series.is_null(), series, str(path), must, "Name the scenario or drop the row.")
    if wanted.scenarios:
        must = f"be a scenario of {MAPPING_FILE} ({', '.join(wanted.scenarios)})"
        known = names.is_in(list(wanted.scenarios))
        refuse(~known, names, str(path), must, "Declare it there or drop the rows.")
    pairs = pl.DataFrame({"code": values, "name": names}).unique().sort("code")
    if pairs["code"].n_unique() != len(pairs) or pairs["name"].n_unique() != len(pairs):
        raise ValueError(
            f"{path}: each value of {column!r} must have one name in '{column}_name'; found "
            f"{pairs.rows()[:8]}. Correct the names."
        )
    found = pairs["name"].to_list()
    scenarios = [
        Scenario(name=n, description=wanted.scenarios.get(n, f"Scenario {n.replace('_', ' ')}."))
        for n in found
    ]
    absent = [n for n in wanted.scenarios if n not in found]
    notes = [f"scenario {n!r} of {MAPPING_FILE} has no rows and is left out" for n in absent]
    number = names.replace_strict(found, list(range(len(found))), return_dtype=pl.Int32)
    return scenarios, number.alias("scenario"), notes


def _side(
    path: Path, side: Literal["user", "item"], declared: dict[str, Kind] | None
) -> tuple[pl.DataFrame, list[Feature], list[str]]:
    """The table of a side with `|`-separated columns as lists, its features, and remarks."""
    frame = _frame(path, [f"{side}_id"]).rename({f"{side}_id": f"{side}_key"})
    if declared is None:
        return guess_features(frame, side)
    require_columns(frame, list(declared), str(path))
    multi = [n for n, k in declared.items() if k == "multi" and frame[n].dtype == pl.String]
    frame = frame.with_columns(pl.col(multi).str.split("|"))
    features = []
    for name, kind in declared.items():
        if kind == "words":
            frame = _with_words(frame, name, path)
            features.append(Feature(f"{name}_words", side, "multi"))
        else:
            features.append(Feature(name, side, kind))
    return frame, features, []


def _with_words(frame: pl.DataFrame, column: str, path: Path) -> pl.DataFrame:
    """The table with a column of the distinct words of a text, in lower case, sorted."""
    if frame[column].dtype != pl.String:
        raise ValueError(
            f"{path}: column {column!r} must hold strings, because {MAPPING_FILE} wants its words; "
            f"found {frame[column].dtype}."
        )
    words = pl.col(column).str.to_lowercase().str.extract_all(r"\w+")
    return frame.with_columns(words.list.unique().list.sort().alias(f"{column}_words"))


def _renamed(rows: pl.DataFrame, label: str, number: pl.Series) -> pl.DataFrame:
    """Under the names of RawTables; the label that was chosen is `label`."""
    if label != "label" and "label" in rows.columns:
        rows = rows.drop("label")
    return rows.rename({"user_id": "user_key", "item_id": "item_key", label: "label"}).with_columns(
        number
    )
