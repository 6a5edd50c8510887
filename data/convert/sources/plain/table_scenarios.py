"""Scenarios of plain interactions: a column of codes and one of their names."""

import polars as pl

from msrec.data.convert.row_filter import ROW, STRICT
from msrec.data.convert.sources.plain.tables_mapping import (
    MAPPING_FILE,
    TablesMapping,
)
from msrec.data.convert.table_checks import check_type
from msrec.data.schema import Scenario

MAX_SCENARIOS = 2**15 - 1


def name_column_of(rows: pl.DataFrame, column: str) -> str:
    """Returns the column with the names of the scenarios."""
    return f"{column}_name" if f"{column}_name" in rows.columns else column


def scenario_pairs(
    rows: pl.DataFrame, column: str, declared: TablesMapping, location: str
) -> pl.DataFrame:
    """Checks the scenarios of rows; returns the distinct pairs of `code` and `name`, sorted."""
    name_column = name_column_of(rows, column)
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


def scenarios_of(
    pairs: pl.DataFrame, column: str, declared: TablesMapping, location: str
) -> tuple[list[Scenario], list[str]]:
    """Returns the scenarios in the order of their codes, and notes."""
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
