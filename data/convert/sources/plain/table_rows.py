"""Rows of plain interactions: what they need to be checked and converted, whole or in parts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, Feature, RawTables
from msrec.data.convert.row_filter import STRICT
from msrec.data.convert.sources.plain.declared_columns import (
    NO_VALUE,
    ReadFiles,
    declared_features,
    read_side,
    typed_table,
)
from msrec.data.convert.sources.plain.declared_types import Table, declared_types
from msrec.data.convert.sources.plain.guess import (
    SEPARATORS,
    guess_text,
    separator_in,
)
from msrec.data.convert.sources.plain.table_files import (
    TIMESTAMP,
    TableFile,
    Versions,
    is_json,
    read_files,
    table_files,
    table_versions,
)
from msrec.data.convert.sources.plain.table_scenarios import (
    name_column_of,
    scenario_pairs,
    scenarios_of,
)
from msrec.data.convert.sources.plain.tables_mapping import (
    DEFAULT_LABEL,
    MAPPING_FILE,
    TablesMapping,
    check_interaction_features,
    declared_labels,
    read_mapping,
)
from msrec.data.convert.sources.text_reader import Columns, TextReader
from msrec.data.convert.table_checks import require_columns
from msrec.data.io.paths import AnyPath, to_path
from msrec.data.labels import LabelOptions, weight_columns

INTERACTIONS = "interactions"


class Survey(NamedTuple):
    """Values of the interactions that decide how each row is converted."""

    columns: pl.DataFrame
    """The columns of the typed rows, without rows."""
    scenarios: pl.DataFrame
    """Distinct pairs of `code` and `name`, in the order of the codes."""
    separators: dict[str, str]
    """Separator that occurs in each column of strings that is declared as `multi`; or ""."""
    given: list[str]
    """Declared features that have a value in some row."""

    @classmethod
    def merged(cls, surveys: Sequence["Survey"]) -> "Survey":
        """Returns the survey of the rows of all surveys."""
        pairs = pl.concat([survey.scenarios for survey in surveys]).unique().sort("code", "name")
        first = surveys[0]
        found = {name: [survey.separators[name] for survey in surveys] for name in first.separators}
        separators = {
            name: next((s for s in SEPARATORS if s in of), "") for name, of in found.items()
        }
        given = [name for survey in surveys for name in survey.given]
        return cls(first.columns, pairs, separators, list(dict.fromkeys(given)))


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
    versions: Versions = field(default_factory=dict)
    """Versions of Delta tables, and snapshots of Iceberg tables."""

    @classmethod
    def declared(
        cls,
        folder: AnyPath,
        scenario_column: str = "scenario",
        label: str = DEFAULT_LABEL,
        mapping: AnyPath | str | None = None,
        versions: Versions | None = None,
    ) -> Self:
        """Reads tables.yaml; see `read_tables`."""
        path = to_path(mapping) if mapping else folder / MAPPING_FILE
        declared = read_mapping(path, bool(mapping))
        labels = declared_labels(declared, label)
        return cls(declared, labels, label, scenario_column, versions or {})

    def of_versions(self, folder: AnyPath, earlier: Versions | None = None) -> Self:
        """Returns the rows of one version of each table: given, of a call before, or latest.

        From then on, `files` does not change when somebody writes to a Delta or Iceberg table.
        """
        return replace(self, versions=table_versions(folder, self.versions, earlier or {}))

    def files(self, folder: AnyPath, table: str = INTERACTIONS) -> list[TableFile]:
        """Returns the files of a table."""
        return table_files(folder, table, self.versions)

    @property
    def _copied(self) -> list[str]:
        """Labels, weights and the impression."""
        weights = weight_columns(self.mapping.weight, list(self.labels), self.labels)
        return [*self.labels, *weights, *filter(None, [self.mapping.impression])]

    @property
    def types(self) -> dict[Table, Columns]:
        """Table -> types of its declared columns, for files of text."""
        return declared_types(self.mapping, self.labels, self.scenario_column)

    def typed(self, frame: pl.DataFrame, location: str) -> pl.DataFrame:
        """Returns raw rows in the types in which they are stored; refuses missing columns."""
        needed = ["user_id", "item_id", self.scenario_column, *self._copied]
        frame = typed_table(frame, needed, location)
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
        pairs = scenario_pairs(rows, self.scenario_column, self.mapping, location)
        given = [n for n in self.mapping.interaction if rows[n].null_count() < rows.height]
        return Survey(rows.clear(), pairs, separators, given)

    def converted(self, rows: pl.DataFrame, survey: Survey) -> pl.DataFrame:
        """Returns typed rows with the columns of `RawTables.interactions`."""
        rows, _, _ = self._features(rows, survey, INTERACTIONS)
        rows = rows.with_columns(**_thresholds(self.mapping))
        names = survey.scenarios["name"].to_list()
        codes = rows[name_column_of(rows, self.scenario_column)].cast(pl.String)
        codes = codes.replace_strict(names, list(range(len(names))), return_dtype=pl.Int32)
        rows = rows.with_columns(codes.cast(pl.Int32).alias("scenario"))  # String if there is none
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
        return declared_features(rows, "interaction", declared, location, survey.separators)

    def raw_tables(
        self,
        folder: AnyPath,
        interactions: TableFile,
        survey: Survey,
        reader: TextReader,
        read: ReadFiles = read_files,
    ) -> RawTables:
        """Reads the users and items; returns the tables without the interactions of a file."""
        declared, types, location = self.mapping, self.types, str(interactions)
        files = {table: self.files(folder, table) for table in ("users", "items")}
        locations = {INTERACTIONS: location}
        locations |= {
            table: str(folder / table if table in self.versions else of[0])
            for table, of in files.items()
        }
        if is_json(interactions):  # a key that no line has is null in all of them
            absent = set(declared.interaction) - set(survey.given)
            found = [name for name in survey.columns.columns if name not in absent]
            require_columns(found, list(declared.interaction), location, NO_VALUE)
        _, row_features, row_notes = self._features(survey.columns, survey, location)
        scenarios, notes = scenarios_of(survey.scenarios, self.scenario_column, declared, location)
        users, user_features, user_notes = read_side(
            files["users"], locations["users"], "user", declared.user, types["user"], reader, read
        )
        items, item_features, item_notes = read_side(
            files["items"], locations["items"], "item", declared.item, types["item"], reader, read
        )
        text, text_notes = (declared.text, []) if declared.text else guess_text(users, items)
        labels = self.labels if declared.labels else {"label": LabelOptions()}
        name = folder.resolve().name or str(folder)  # a bucket has no name
        return RawTables(
            name=declared.name or name,
            description=declared.description or f"The data set {name}.",
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
            text=text,
            files=locations,
            versions=dict(self.versions),
            notes=(*notes, *user_notes, *item_notes, *row_notes, *text_notes),
        )


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
