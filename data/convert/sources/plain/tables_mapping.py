"""The file tables.yaml, which says which columns of plain tables are labels and features."""

from typing import Literal

from pydantic import Field, ValidationError

from msrec.data.io.paths import AnyPath, is_file
from msrec.data.io.validation import StrictModel, first_error
from msrec.data.io.yaml_files import read_yaml
from msrec.data.labels import LabelOptions, check_labels
from msrec.data.schema import TextFields

MAPPING_FILE = "tables.yaml"
DEFAULT_LABEL = "label"
Kind = Literal["sparse", "multi", "dense", "words"]
"""Kind of a feature; `words` is a multi-valued feature of the distinct words of a text."""


class Separated(StrictModel):
    """A multi-valued feature whose values are in one string."""

    multi: str = Field(min_length=1)
    """Separator of the values, such as `|`."""


Kinds = dict[str, Kind | Separated]


class TablesMapping(StrictModel):
    """Content of tables.yaml; what it leaves out gets a default or is guessed and printed."""

    name: str | None = None
    """Name of the data set, default: that of the folder."""
    description: str | None = None
    """One sentence about the app, for prompts."""
    scenarios: dict[str, str] = {}
    """Name of a scenario -> its description, for prompts."""
    user: Kinds | None = None
    """Columns of users.parquet that are features, with their kinds: `{age: sparse, city: sparse}`.
    `title: words` makes a feature title_words of the words of a text, and `genres: {multi: ","}`
    makes lists of the strings of a column. Default: guessed."""
    item: Kinds | None = None
    """Columns of items.parquet that are features, with their kinds. Default: guessed."""
    interaction: Kinds = {}
    """Columns of interactions.parquet that are features; ratings and labels may not be."""
    labels: dict[str, LabelOptions] = {}
    """Columns of interactions.parquet that are labels, the main one first: `click: binary`,
    `watch: {kind: regression, clip: [0, 600]}`, `buy: {exists_where: click}`. Default: one."""
    integers: list[str] = []
    """Columns of tables in CSV or JSON lines that hold integers: keys, scenarios, impressions or
    sparse features. The others of these are text: `007` is not 7."""
    weight: str | None = None
    """Column of interactions.parquet with the weight of each row."""
    impression: str | None = None
    """Column of interactions.parquet with the id of the list that a row was shown in."""
    more_labels: dict[str, list[float]] = {}
    """Further labels by thresholds: `{rating: [1, 2]}` adds the labels rating>1 and rating>2."""
    text: TextFields | None = None
    """Columns of texts that prompts may read. Default: guessed."""
    timestamp_unit: Literal["s", "ms"] | None = None
    """Unit of the column timestamp since 1970; without it timestamps only order the rows."""


def read_mapping(path: AnyPath, must_exist: bool) -> TablesMapping:
    """Reads tables.yaml; without the file, everything is a default.

    Raises:
        FileNotFoundError: it must exist and does not.
        ValueError: a field is unknown or has a wrong value.
    """
    if not is_file(path):
        if must_exist:
            raise FileNotFoundError(f"{path} must exist, since it was given as the mapping.")
        return TablesMapping()
    try:
        return TablesMapping.model_validate(read_yaml(path) or {})
    except ValidationError as error:
        value = error.errors()[0]["input"]
        raise ValueError(
            f"{path}: {first_error(error)}; got {value!r}. Known fields: "
            f"{', '.join(TablesMapping.model_fields)}."
        ) from None


def declared_labels(declared: TablesMapping, label: str) -> dict[str, LabelOptions]:
    """Returns the columns that are labels, the first one first, with their options.

    Raises:
        ValueError: `label` is not one of them, or the options do not fit together.
    """
    if not declared.labels:
        return {label: LabelOptions()}
    labels = declared.labels
    if label != DEFAULT_LABEL and label not in labels:
        raise ValueError(
            f"--label must be one of the labels of {MAPPING_FILE} ({', '.join(labels)}); got "
            f"{label!r}."
        )
    first = label if label in labels else next(iter(labels))
    labels = {first: labels[first], **labels}
    try:
        check_labels(list(labels), labels)
    except ValueError as error:
        raise ValueError(f"{MAPPING_FILE}: labels: {error}.") from None
    return labels


def check_interaction_features(declared: TablesMapping, others: list[str], location: str) -> None:
    """Refuses features of the interactions that are labels, weights or impressions, or ratings.

    Raises:
        ValueError: names the column.
    """
    for name, kind in declared.interaction.items():
        if name in others or name.startswith(("rating", "label")):
            raise ValueError(
                f"{MAPPING_FILE}: interaction: a feature must not give the label away; found "
                f"{name!r} of {location}. Remove it from the mapping."
            )
        if kind == "words":
            raise ValueError(
                f"{MAPPING_FILE}: interaction: words are made of columns of users and items only; "
                f"found {name!r}. Declare it as sparse or multi."
            )
