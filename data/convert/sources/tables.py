"""Plain tables: interactions, items and users .parquet, described by tables.yaml."""

from pathlib import Path
from typing import Literal

import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, Feature, RawTables, Side
from msrec.data.convert.row_filter import STRICT
from msrec.data.convert.sources.guess import (
    guess_features,
    guess_separator,
    guess_text,
    split_strings,
)
from msrec.data.convert.sources.tables_mapping import (
    DEFAULT_LABEL,
    MAPPING_FILE,
    Kinds,
    Separated,
    TablesMapping,
    check_interaction_features,
    declared_labels,
    read_mapping,
)
from msrec.data.convert.table_checks import check_type, require_columns
from msrec.data.features.value_types import stored_series
from msrec.data.io.parquet_files import named_errors
from msrec.data.labels import LabelOptions, weight_columns
from msrec.data.schema import ID_KEYS, Scenario

TIMESTAMP = "timestamp"
MAX_SCENARIOS = 2**15 - 1


def read_tables(
    folder: Path | str,
    scenario_column: str = "scenario",
    label: str = DEFAULT_LABEL,
    mapping: Path | str | None = None,
) -> RawTables:
    """Reads interactions.parquet (user_id, item_id, scenario, label, ...), users and items.

    Scenarios are named by the column `<scenario_column>_name`. Features are named by tables.yaml or
    the defaults in `data/convert/sources/guess.py`. Columns of the interactions are features only
    if tables.yaml names them, and never a rating or a label.

    Args:
        folder: with the three files.
        scenario_column: column of the interactions.
        label: column of the interactions with the first label, which is renamed to `label` if
            tables.yaml names no labels.
        mapping: the YAML file; `tables.yaml` in the folder if None.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file cannot be read, a column is missing, or tables.yaml is wrong.
    """
    folder = Path(folder)
    paths = {table: folder / f"{table}.parquet" for table in ("interactions", "users", "items")}
    declared = read_mapping(Path(mapping) if mapping else folder / MAPPING_FILE, bool(mapping))
    location = str(paths["interactions"])
    labels = declared_labels(declared, label)
    weights = weight_columns(declared.weight, list(labels), labels)
    others = [*labels, *weights, *([declared.impression] if declared.impression else [])]
    rows = _read_parquet(paths["interactions"], ["user_id", "item_id", scenario_column, *others])
    if declared.timestamp_unit is not None:
        require_columns(rows.columns, [TIMESTAMP], f"{location} (its unit is given)")
    check_interaction_features(declared, others, location)
    rows, row_features, row_notes = _declared_features(
        rows, "interaction", declared.interaction, location
    )
    rows, more_labels = _with_more_labels(rows, declared, location)
    rows, scenarios, notes = _with_scenarios(rows, scenario_column, declared, location)
    users, user_features, user_notes = _read_side(paths["users"], "user", declared.user)
    items, item_features, item_notes = _read_side(paths["items"], "item", declared.item)
    guessed_text, text_notes = guess_text(users, items)
    names = {"user_id": "user_key", "item_id": "item_key"}
    if not declared.labels:
        names[label], labels = "label", {"label": LabelOptions()}
        if label != "label":
            rows = rows.drop("label", strict=False)
    rows, impression_notes = _with_impressions(rows, declared.impression)
    return RawTables(
        name=declared.name or folder.resolve().name,
        description=declared.description or f"The data set {folder.resolve().name}.",
        interactions=rows.rename(names),
        users=users,
        items=items,
        scenarios=scenarios,
        features=(*ID_FEATURES, *user_features, *item_features, *row_features),
        labels=(*labels, *more_labels),
        label_options={name: each for name, each in labels.items() if each != LabelOptions()},
        weight=declared.weight,
        impression=declared.impression,
        timestamp=TIMESTAMP if TIMESTAMP in rows.columns else None,
        timestamp_unit=declared.timestamp_unit,
        text=declared.text or guessed_text,
        files={table: str(path) for table, path in paths.items()},
        notes=(
            *notes,
            *user_notes,
            *item_notes,
            *row_notes,
            *([] if declared.text else text_notes),
            *impression_notes,
        ),
    )


def _read_parquet(path: Path, columns: list[str]) -> pl.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must exist: plain tables are interactions, users and items .parquet."
        )
    with named_errors(path):
        frame = pl.read_parquet(path, glob=False)
    require_columns(frame.columns, columns, str(path))
    for name in columns:
        key = ID_KEYS.get(name)
        if key in frame.columns:
            raise ValueError(
                f"{path} must not have the column {key!r} beside {name!r}, which gets that name "
                "in a dataset folder. Rename or drop one."
            )
    return pl.DataFrame([stored_series(values) for values in frame])


def _with_impressions(rows: pl.DataFrame, column: str | None) -> tuple[pl.DataFrame, list[str]]:
    """Numbers impressions that are not integers; returns a note on it."""
    if column is None or rows[column].dtype.is_integer():
        return rows, []
    check_type(rows[column], "key", "interactions")
    numbers = rows.select(pl.col(column).rank("dense").cast(pl.Int64) - 1)
    return rows.with_columns(numbers), [f"values of {column!r} are numbered from 0, in their order"]


def _with_more_labels(
    rows: pl.DataFrame, declared: TablesMapping, location: str
) -> tuple[pl.DataFrame, list[str]]:
    """Adds a column for each further label; returns the names of these columns too."""
    require_columns(rows.columns, list(declared.more_labels), location)
    labels = {}
    for column, thresholds in declared.more_labels.items():
        if not rows[column].dtype.is_numeric():
            raise ValueError(
                f"{location}: column {column!r} must hold numbers, because {MAPPING_FILE} makes "
                f"labels of it; found {rows[column].dtype}. Convert it or name another."
            )
        is_known = pl.col(column).cast(pl.Float64).is_finite()
        must = "be a finite number, as a label is made of it"
        STRICT.keep(rows, column, is_known, location, must, "Remove the row.")
        for threshold in thresholds:
            labels[f"{column}>{threshold:g}"] = (pl.col(column) > threshold).cast(pl.Float32)
    return rows.with_columns(**labels), list(labels)


def _with_scenarios(
    rows: pl.DataFrame, column: str, declared: TablesMapping, location: str
) -> tuple[pl.DataFrame, list[Scenario], list[str]]:
    """Adds the scenario's number; returns the scenarios in the order of their codes, and notes."""
    name_column = f"{column}_name" if f"{column}_name" in rows.columns else column
    for name in (column, name_column):
        check_type(rows[name], "scenario value", location)
    names = rows.select(pl.col(name_column).cast(pl.String))
    for frame in (rows.select(column), names):
        checked, advice = frame.columns[0], "Name the scenario or drop the row."
        is_known, must = pl.col(checked).is_not_null(), "be a known scenario, not null"
        STRICT.keep(frame, checked, is_known, location, must, advice)
    if declared.scenarios:
        is_declared = pl.col(name_column).is_in(list(declared.scenarios))
        must = f"be a scenario of {MAPPING_FILE} ({', '.join(declared.scenarios)})"
        advice = "Declare it there or drop the rows."
        STRICT.keep(names, name_column, is_declared, location, must, advice)
    pairs = pl.DataFrame({"code": rows[column], "name": names[name_column]}).unique().sort("code")
    if pairs["code"].n_unique() != len(pairs) or pairs["name"].n_unique() != len(pairs):
        raise ValueError(
            f"{location}: each value of {column!r} must have one name in '{column}_name'; found "
            f"{pairs.rows()[:8]}. Correct the names."
        )
    if len(pairs) > MAX_SCENARIOS:
        raise ValueError(
            f"{location}: column {column!r} must have at most {MAX_SCENARIOS:,} values, each of "
            f"which is a scenario; it has {len(pairs):,}. Name another column."
        )
    order = pairs["name"].to_list()
    default = {name: f"Scenario {name.replace('_', ' ')}." for name in order}
    texts = default | declared.scenarios
    scenarios = [Scenario(name=name, description=texts[name]) for name in order]
    absent = [name for name in declared.scenarios if name not in order]
    notes = [f"scenario {n!r} of {MAPPING_FILE} has no rows and is left out" for n in absent]
    numbers = names[name_column].replace_strict(
        order, list(range(len(order))), return_dtype=pl.Int32
    )
    return rows.with_columns(numbers.alias("scenario")), scenarios, notes


def _read_side(
    path: Path, side: Side, declared: Kinds | None
) -> tuple[pl.DataFrame, list[Feature], list[str]]:
    """Returns a table with its features, these, and notes."""
    frame = _read_parquet(path, [f"{side}_id"]).rename({f"{side}_id": f"{side}_key"})
    if declared is None:
        return guess_features(frame, side)
    return _declared_features(frame, side, declared, str(path))


def _declared_features(
    frame: pl.DataFrame,
    side: Literal["user", "item", "interaction"],
    declared: Kinds,
    location: str,
) -> tuple[pl.DataFrame, list[Feature], list[str]]:
    """Returns a table with its declared features, these, and a note on each guessed separator."""
    require_columns(frame.columns, list(declared), location)
    features, notes = [], []
    for name, kind in declared.items():
        is_string = frame[name].dtype == pl.String
        if kind == "words":
            if not is_string:
                raise ValueError(
                    f"{location}: column {name!r} must hold strings, because {MAPPING_FILE} makes "
                    f"a feature of its words; found {frame[name].dtype}. Declare another kind."
                )
            words = pl.col(name).str.to_lowercase().str.extract_all(r"\w+")
            frame = frame.with_columns(words.list.unique().list.sort().alias(f"{name}_words"))
            features.append(Feature(f"{name}_words", side, "multi"))
        elif is_string and (kind == "multi" or isinstance(kind, Separated)):
            separator = kind.multi if isinstance(kind, Separated) else guess_separator(frame[name])
            frame = frame.with_columns(split_strings(frame[name], separator))
            features.append(Feature(name, side, "multi", separator=separator))
            if kind == "multi":
                notes.append(f"{side}s.{name}: values are separated by {separator!r} (guessed)")
        elif isinstance(kind, Separated):
            raise ValueError(
                f"{location}: column {name!r} must hold strings, because {MAPPING_FILE} gives a "
                f"separator; found {frame[name].dtype}. Declare it as multi or sparse."
            )
        else:
            features.append(Feature(name, side, kind))
    return frame, features, notes
