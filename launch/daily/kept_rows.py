"""Check that a dataset kept the table rows of the values of an older one."""

import logging
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from msrec.data.features.value_types import stored
from msrec.data.features.vocabulary import VOCABULARIES, vocabulary_file
from msrec.data.io.parquet_files import read_parquet
from msrec.data.io.paths import AnyPath, is_file
from msrec.data.schema import load_schema
from msrec.launch.config.run_config import RunConfig
from msrec.launch.trained_run import find_run, load_run_config

logger = logging.getLogger(__name__)


def require_kept_rows(source: AnyPath, config: RunConfig) -> None:
    """Checks that a table row has the same value in a new run as in the run that it starts from.

    A warning is logged if the dataset of that run cannot be found.

    Args:
        source: `init_from` of the new run.
        config: of the new run.

    Raises:
        ValueError: a value has another row; names the feature.
    """
    try:
        known = load_run_config(find_run(source).folder).dataset
        pairs = list(_row_files(known, config))
    except FileNotFoundError as error:
        logger.warning("cannot check that old values keep their table rows: %s", error)
        return
    for old, new, column, advice in pairs:
        row = _first_difference(_values(old, column), _values(new, column))
        if row is not None:
            raise ValueError(
                f"{new} must begin with the values of {old}, so that their table rows keep their "
                f"meaning; value {row} differs. {advice}"
            )


def _row_files(known: AnyPath, config: RunConfig) -> Iterator[tuple[AnyPath, AnyPath, str, str]]:
    """Yields old and new file of each table whose rows are numbered by one, its column, advice.

    Raises:
        FileNotFoundError: there is no dataset `known`.
        ValueError: a hashed table has another size.
    """
    old, new = load_schema(known), load_schema(config.dataset)
    advice = f"Convert {config.dataset} with --grow-from {known}."
    for feature in (each for each in old.sparse if each in new.sparse):
        files = [vocabulary_file(data, feature.name) for data in (known, config.dataset)]
        if any(map(is_file, files)):
            yield files[0], files[1], "value", advice
            continue
        sizes = old.tables[feature.table], new.tables[feature.table]
        if sizes[0] != sizes[1] and (known / VOCABULARIES).is_dir():
            raise ValueError(
                f"{config.dataset}: the hashed feature {feature.name!r} must have a table of "
                f"{sizes[0]} rows, as in {known}; it has {sizes[1]}. {advice}"
            )
    sides = []
    if config.sequence.encoder != "none":
        sides.append("item")
    if config.llm.control == "learned":
        sides.append("user")
    for side in sides:
        name = f"{side}s.parquet"
        advice = f"Put the {side}s of {known} first, in their order."
        yield known / name, config.dataset / name, f"{side}_key", advice


def _values(path: AnyPath, column: str) -> pa.Array:
    return stored(read_parquet(path, [column])[column].combine_chunks())


def _first_difference(old: pa.Array, new: pa.Array) -> int | None:
    """Returns the first position at which `new` does not have the value of `old`, if any."""
    kept = new.slice(0, len(old))
    if old.equals(kept):
        return None
    if old.type != kept.type:
        return 0
    differs = pc.invert(pc.fill_null(pc.equal(old.slice(0, len(kept)), kept), False))
    first: int = pc.index(differs, True).as_py()
    return len(kept) if first < 0 else first
