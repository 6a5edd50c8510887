"""Types of the columns of text tables, by what tables.yaml says about them."""

from typing import Any, Literal

from msrec.data.convert.sources.plain.table_files import LISTS, TIMESTAMP
from msrec.data.convert.sources.plain.tables_mapping import MAPPING_FILE, Kinds, TablesMapping
from msrec.data.convert.sources.text_reader import Columns, Scalar
from msrec.data.labels import LabelOptions, weight_columns

Table = Literal["user", "item", "interaction"]
TEXT, INTEGER, NUMBER, BINARY = Scalar | None, int | None, float | None, bool | None


def declared_types(
    declared: TablesMapping, labels: dict[str, LabelOptions], scenario_column: str
) -> dict[Table, Columns]:
    """Returns table -> types of its declared columns, for files of text.

    Keys, scenarios, impressions and sparse features are text, or integers if `integers` names them.

    Raises:
        ValueError: `integers` names another column.
    """
    weights = weight_columns(declared.weight, list(labels), labels)
    numbers = dict.fromkeys((*declared.more_labels, *weights), NUMBER)
    binary = {n: BINARY if label.kind == "binary" else NUMBER for n, label in labels.items()}
    keys = ["user_id", "item_id", scenario_column, *filter(None, [declared.impression])]
    rows = {**_of_kinds(declared.interaction), **numbers, **binary, TIMESTAMP: INTEGER}
    tables: dict[Table, dict[str, Any]] = {
        "user": {**_of_kinds(declared.user), "user_id": TEXT},
        "item": {**_of_kinds(declared.item), "item_id": TEXT},
        "interaction": rows | dict.fromkeys(keys, TEXT),
    }
    for name in declared.integers:
        of = [types for types in tables.values() if types.get(name) == TEXT]
        if not of:
            raise ValueError(
                f"{MAPPING_FILE}: integers: a name must be a key, the column of the scenarios or "
                f"of the impressions, or a sparse feature; found {name!r}. Correct it."
            )
        for types in of:
            types[name] = INTEGER
    return dict(tables)


def _of_kinds(kinds: Kinds | None) -> dict[str, Any]:
    of_kind = {"dense": NUMBER, "multi": LISTS}
    return {
        name: of_kind.get(kind, TEXT) if isinstance(kind, str) else TEXT
        for name, kind in (kinds or {}).items()
    }
