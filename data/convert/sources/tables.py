"""Plain tables: interactions, items and users .parquet, described by tables.yaml."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self

import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, Chunk, Feature, RawTables, Side
from msrec.data.convert.row_filter import ROW, STRICT
from msrec.data.convert.sources.guess import (
    SEPARATORS,
    guess_features,
    guess_separator,
    guess_text,
    separator_in,
    split_strings,
)
from msrec.data.convert.sources.tables_mapping import (
    DEFAULT_LABEL,
    MAPPING_FILE,
    Kind,
    Kinds,
    Separated,
    TablesMapping,
    check_interaction_features,
    declared_labels,
    read_mapping,
)
from msrec.data.convert.table_checks import check_type, require_columns
from msrec.data.features.value_types import stored_series
from msrec.data.io.parquet_files import named_errors, scan_parquet
from msrec.data.labels import LabelOptions, weight_columns
from msrec.data.schema import ID_KEYS, Scenario

TIMESTAMP = "timestamp"
INTERACTIONS = "interactions.parquet"
MAX_SCENARIOS = 2**15 - 1


def read_tables(
    folder: Path | str,
    scenario_column: str = "scenario",
    label: str = DEFAULT_LABEL,
    mapping: Path | str | None = None,
) -> RawTables:
    """Reads interactions.parquet (user_id, item_id, scenario, label, ...), users and items.

    In place of interactions.parquet there may be a folder `interactions` of Parquet files.

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
    source = TableRows.declared(folder, scenario_column, label, mapping)
    files = interaction_files(folder)
    frames = [source.typed(_read_parquet(path), str(path)) for path in files]
    surveys = [source.survey(f, str(path)) for f, path in zip(frames, files, strict=True)]
    survey = Survey.merged(surveys)
    raw = source.raw_tables(folder, survey)
    frames, notes = _with_impressions(
        [source.converted(frame, survey) for frame in frames], source.mapping.impression
    )
    raw = dataclasses.replace(raw, notes=(*raw.notes, *notes))
    if len(files) == 1:
        return dataclasses.replace(raw, interactions=frames[0])
    chunks = [Chunk(str(path), frame) for path, frame in zip(files, frames, strict=True)]
    return dataclasses.replace(raw, interactions=chunks)


def interaction_files(folder: Path) -> list[Path]:
    """Returns interactions.parquet, or the files of the folder `interactions` by their names.

    Raises:
        FileNotFoundError: there is neither.
    """
    files = sorted((folder / "interactions").glob("*.parquet"))
    if files and not (folder / INTERACTIONS).exists():
        scan_parquet(files)  # refuses files with different columns
        return files
    return [folder / INTERACTIONS]


class Survey(NamedTuple):
    """Values of the interactions that decide how each row is converted."""

    columns: pl.DataFrame
    """The columns of the typed rows, without rows."""
    scenarios: pl.DataFrame
    """Distinct pairs of `code` and `name`, in the order of the codes."""
    separators: dict[str, str]
    """Separator that occurs in each column of strings that is declared as `multi`; or ""."""

    @classmethod
    def merged(cls, surveys: Sequence["Survey"]) -> "Survey":
        """Returns the survey of the rows of all surveys."""
        pairs = pl.concat([survey.scenarios for survey in surveys]).unique().sort("code", "name")
        first = surveys[0]
        found = {name: [survey.separators[name] for survey in surveys] for name in first.separators}
        separators = {
            name: next((s for s in SEPARATORS if s in of), "") for name, of in found.items()
        }
        return cls(first.columns, pairs, separators)


@dataclass(frozen=True)
class TableRows:
    """Rows of plain interactions: their checks, and their conversion to those of `RawTables`.

    Rows may be converted in parts: take a survey of each part and merge the surveys; then convert
    each part.
    """

    mapping: TablesMapping
    labels: dict[str, LabelOptions]
    label: str
    scenario_column: str

    @classmethod
    def declared(
        cls,
        folder: Path,
        scenario_column: str = "scenario",
        label: str = DEFAULT_LABEL,
        mapping: Path | str | None = None,
    ) -> Self:
        """Reads tables.yaml; see `read_tables`."""
        declared = read_mapping(Path(mapping) if mapping else folder / MAPPING_FILE, bool(mapping))
        return cls(declared, declared_labels(declared, label), label, scenario_column)

    @property
    def _copied(self) -> list[str]:
        """Labels, weights and the impression."""
        weights = weight_columns(self.mapping.weight, list(self.labels), self.labels)
        return [*self.labels, *weights, *filter(None, [self.mapping.impression])]

    def typed(self, frame: pl.DataFrame, location: str) -> pl.DataFrame:
        """Returns raw rows in the types in which they are stored; refuses missing columns."""
        needed = ["user_id", "item_id", self.scenario_column, *self._copied]
        frame = _typed(frame, needed, location)
        if self.mapping.timestamp_unit is not None:
            require_columns(frame.columns, [TIMESTAMP], f"{location} (its unit is given)")
        check_interaction_features(self.mapping, self._copied, location)
        require_columns(frame.columns, list(self.mapping.interaction), location)
        return frame

    @property
    def survey_columns(self) -> set[str]:
        """Columns that `survey` reads, if they exist."""
        column, mapping = self.scenario_column, self.mapping
        return {column, f"{column}_name", *mapping.interaction, *mapping.more_labels}

    def survey(self, rows: pl.DataFrame, location: str) -> Survey:
        """Checks typed rows, and returns the values that decide how all rows are converted."""
        separators = {
            name: separator_in(rows[name])
            for name, kind in self.mapping.interaction.items()
            if kind == "multi" and rows[name].dtype == pl.String
        }
        _check_thresholds(rows, self.mapping, location)
        pairs = _scenario_pairs(rows, self.scenario_column, self.mapping, location)
        return Survey(rows.clear(), pairs, separators)

    def converted(self, rows: pl.DataFrame, survey: Survey) -> pl.DataFrame:
        """Returns typed rows with the columns of `RawTables.interactions`."""
        rows, _, _ = self._features(rows, survey, INTERACTIONS)
        rows = rows.with_columns(**_thresholds(self.mapping))
        names = survey.scenarios["name"].to_list()
        codes = rows[_name_column(rows, self.scenario_column)].cast(pl.String)
        codes = codes.replace_strict(names, list(range(len(names))), return_dtype=pl.Int32)
        rows = rows.with_columns(codes.alias("scenario"))
        renamed = {"user_id": "user_key", "item_id": "item_key"}
        if not self.mapping.labels:
            renamed[self.label] = "label"
            if self.label != "label":
                rows = rows.drop("label", strict=False)
        return rows.rename(renamed)

    def _features(
        self, rows: pl.DataFrame, survey: Survey, location: str
    ) -> tuple[pl.DataFrame, list[Feature], list[str]]:
        declared = self.mapping.interaction
        return _declared_features(rows, "interaction", declared, location, survey.separators)

    def raw_tables(self, folder: Path, survey: Survey) -> RawTables:
        """Reads the users and items; returns the tables without interactions."""
        declared = self.mapping
        paths = {table: folder / f"{table}.parquet" for table in ("interactions", "users", "items")}
        location = str(paths["interactions"])
        _, row_features, row_notes = self._features(survey.columns, survey, location)
        scenarios, notes = _scenarios(survey, self.scenario_column, declared, location)
        users, user_features, user_notes = _read_side(paths["users"], "user", declared.user)
        items, item_features, item_notes = _read_side(paths["items"], "item", declared.item)
        guessed_text, text_notes = guess_text(users, items)
        text_notes = [] if declared.text else text_notes
        labels = self.labels if declared.labels else {"label": LabelOptions()}
        return RawTables(
            name=declared.name or folder.resolve().name,
            description=declared.description or f"The data set {folder.resolve().name}.",
            interactions=(),
            users=users,
            items=items,
            scenarios=scenarios,
            features=(*ID_FEATURES, *user_features, *item_features, *row_features),
            labels=(*labels, *_thresholds(declared)),
            label_options={name: each for name, each in labels.items() if each != LabelOptions()},
            weight=declared.weight,
            impression=declared.impression,
            timestamp=TIMESTAMP if TIMESTAMP in survey.columns.columns else None,
            timestamp_unit=declared.timestamp_unit,
            text=declared.text or guessed_text,
            files={table: str(path) for table, path in paths.items()},
            notes=(*notes, *user_notes, *item_notes, *row_notes, *text_notes),
        )


def _read_parquet(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must exist: plain tables are interactions, users and items .parquet."
        )
    with named_errors(path):
        return pl.read_parquet(path, glob=False)


def _typed(frame: pl.DataFrame, columns: list[str], location: str) -> pl.DataFrame:
    """Returns a raw table in the types in which values are stored."""
    require_columns(frame.columns, columns, location)
    for name in columns:
        key = ID_KEYS.get(name)
        if key in frame.columns:
            raise ValueError(
                f"{location} must not have the column {key!r} beside {name!r}, which gets that "
                "name in a dataset folder. Rename or drop one."
            )
    return pl.DataFrame([stored_series(values) for values in frame])


def _with_impressions(
    frames: list[pl.DataFrame], column: str | None
) -> tuple[list[pl.DataFrame], list[str]]:
    """Numbers impressions that are not integers; returns a note on it."""
    if column is None or frames[0][column].dtype.is_integer():
        return frames, []
    check_type(frames[0][column], "key", "interactions")
    values = pl.concat([frame[column] for frame in frames])
    numbers = values.rank("dense").cast(pl.Int64) - 1
    ends = itertools.accumulate(map(len, frames))
    frames = [
        frame.with_columns(numbers.slice(end - len(frame), len(frame)))
        for frame, end in zip(frames, ends, strict=True)
    ]
    return frames, [f"values of {column!r} are numbered from 0, in their order"]


def _check_thresholds(rows: pl.DataFrame, declared: TablesMapping, location: str) -> None:
    """Refuses columns of which labels cannot be made by thresholds."""
    require_columns(rows.columns, list(declared.more_labels), location)
    for column in declared.more_labels:
        if not rows[column].dtype.is_numeric():
            raise ValueError(
                f"{location}: column {column!r} must hold numbers, because {MAPPING_FILE} makes "
                f"labels of it; found {rows[column].dtype}. Convert it or name another."
            )
        is_known = pl.col(column).cast(pl.Float64).is_finite()
        must = "be a finite number, as a label is made of it"
        STRICT.keep(rows, column, is_known, location, must, "Remove the row.")


def _thresholds(declared: TablesMapping) -> dict[str, pl.Expr]:
    """Returns each further label, 1 where a column exceeds a threshold."""
    return {
        f"{column}>{threshold:g}": (pl.col(column) > threshold).cast(pl.Float32)
        for column, thresholds in declared.more_labels.items()
        for threshold in thresholds
    }


def _name_column(rows: pl.DataFrame, column: str) -> str:
    """Returns the column with the names of the scenarios."""
    return f"{column}_name" if f"{column}_name" in rows.columns else column


def _scenario_pairs(
    rows: pl.DataFrame, column: str, declared: TablesMapping, location: str
) -> pl.DataFrame:
    """Checks the scenarios of rows; returns the distinct pairs of `code` and `name`, sorted."""
    name_column = _name_column(rows, column)
    for name in (column, name_column):
        check_type(rows[name], "scenario value", location)
    numbers = [ROW] if ROW in rows.columns else []
    names = rows.select(pl.col(name_column).cast(pl.String), *numbers)
    for frame in (rows.select(column, *numbers), names):
        checked, advice = frame.columns[0], "Name the scenario or drop the row."
        is_known, must = pl.col(checked).is_not_null(), "be a known scenario, not null"
        STRICT.keep(frame, checked, is_known, location, must, advice)
    if declared.scenarios:
        is_declared = pl.col(name_column).is_in(list(declared.scenarios))
        must = f"be a scenario of {MAPPING_FILE} ({', '.join(declared.scenarios)})"
        advice = "Declare it there or drop the rows."
        STRICT.keep(names, name_column, is_declared, location, must, advice)
    pairs = pl.DataFrame({"code": rows[column], "name": names[name_column]})
    return pairs.unique().sort("code", "name")


def _scenarios(
    survey: Survey, column: str, declared: TablesMapping, location: str
) -> tuple[list[Scenario], list[str]]:
    """Returns the scenarios in the order of their codes, and notes."""
    pairs = survey.scenarios
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
    absent = [name for name in declared.scenarios if name not in order]
    notes = [f"scenario {n!r} of {MAPPING_FILE} has no rows and is left out" for n in absent]
    return [Scenario(name=name, description=texts[name]) for name in order], notes


def _read_side(
    path: Path, side: Side, declared: Kinds | None
) -> tuple[pl.DataFrame, list[Feature], list[str]]:
    """Returns a table with its features, these, and notes."""
    frame = _typed(_read_parquet(path), [f"{side}_id"], str(path))
    frame = frame.rename({f"{side}_id": f"{side}_key"})
    if declared is None:
        return guess_features(frame, side)
    return _declared_features(frame, side, declared, str(path))


def _declared_features(
    frame: pl.DataFrame,
    side: Literal["user", "item", "interaction"],
    declared: Kinds,
    location: str,
    separators: Mapping[str, str] | None = None,
) -> tuple[pl.DataFrame, list[Feature], list[str]]:
    """Returns a table with its declared features, these, and a note on each guessed separator.

    `separators` are those that occur in all rows, if the table has only some of them.
    """
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
            separator = _separator(frame[name], kind, separators)
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


def _separator(
    values: pl.Series, kind: Kind | Separated, occurring: Mapping[str, str] | None
) -> str:
    """Returns the separator of the values in strings: declared, occurring, or guessed."""
    if isinstance(kind, Separated):
        return kind.multi
    if occurring is None:
        return guess_separator(values)
    return occurring[values.name] or SEPARATORS[0]
