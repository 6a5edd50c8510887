"""Blocks of JSON lines, parsed to strings."""

import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from msrec.data.convert.row_filter import ROW
from msrec.data.convert.sources.text_blocks import split_lines
from msrec.data.io.json_files import repeated_keys

PIECE_LINES = 1024
"""Lines that are parsed one by one if one of them is not readable."""
_LONE_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
"""Half of a pair, which polars reads as NUL."""
_SURROGATES = re.compile("[\ud800-\udfff]")
_ESCAPED_KEY = re.compile(rb'\\u00[2-7][0-9a-fA-F]\w*"[ \t\r]*:')
"""Key that may be one of those to read, although it is spelt with an escape."""


def parse_json(
    block: bytes,
    keys: Sequence[str],
    lists: Sequence[str],
    first_row: int,
    flat: Sequence[str] = (),
) -> tuple[pl.DataFrame, list[str]]:
    """Returns some keys of a block of JSON lines, and what is wrong with each bad line.

    Values are strings, or lists of strings under the keys in `lists`. A key that a line lacks is
    null; one that is there twice makes the line bad. So does an object or a list as a value, or in
    a list, under the keys in `flat`; under others, its JSON is the string. NaN and Infinity are
    strings too. A lone surrogate becomes U+FFFD. Rows are numbered as by `parse_csv`.
    """
    schema = {key: pl.List(pl.String) if key in lists else pl.String() for key in keys}
    may_nest = _nested_values(flat, lists)
    frame = _parse_fast(block, schema, may_nest)
    if frame is not None:
        row = pl.int_range(first_row, first_row + pl.len(), dtype=pl.Int64)
        return frame.with_columns(row.alias(ROW)), []
    lines = split_lines(block)
    frames, bad, problems = [pl.DataFrame(schema=schema)], [], []
    for start in range(0, len(lines), PIECE_LINES):
        piece = lines[start : start + PIECE_LINES]
        frame = _parse_fast(b"\n".join(piece), schema, may_nest)
        if frame is None:
            parsed = [_parse_line(line, keys, lists, flat) for line in piece]
            good = [values for values in parsed if not isinstance(values, str)]
            frame = pl.DataFrame(good, schema=schema, orient="row")
            for number, problem in enumerate(parsed, start):
                if isinstance(problem, str):
                    bad.append(number)
                    problems.append(f"row {first_row + number} {problem}")
        frames.append(frame)
    rows = np.delete(np.arange(first_row, first_row + len(lines)), bad)
    return pl.concat(frames).with_columns(pl.Series(ROW, rows, dtype=pl.Int64)), problems


def _nested_values(flat: Sequence[str], lists: Sequence[str]) -> list[re.Pattern[bytes]]:
    """Returns a pattern for each key that finds an object or a list under it, or in its list."""
    begin = {key: rb"\[[^\]]*[\[{]" if key in lists else rb"[\[{]" for key in flat}
    space = rb"[ \t\r]*"
    return [
        re.compile(re.escape(json.dumps(key).encode()) + space + rb":" + space + begin[key])
        for key in flat
    ]


def _parse_fast(
    block: bytes, schema: dict[str, Any], may_nest: Sequence[re.Pattern[bytes]]
) -> pl.DataFrame | None:
    """Parses all lines at once; None if a line cannot be read so."""
    if any(odd.search(block) for odd in (_LONE_SURROGATE, _ESCAPED_KEY, *may_nest)):
        return None
    try:
        frame = pl.read_ndjson(block, schema=schema)
    except pl.exceptions.PolarsError:
        return None
    # Of a key that is there twice, polars takes the first value and Python the last.
    return None if any(_is_repeated(block, key, frame[key].count()) for key in schema) else frame


def _is_repeated(block: bytes, key: str, num_values: int) -> bool:
    """Returns whether a line has a key twice; `num_values` lines have a value under it."""
    name = json.dumps(key).encode()
    if block.count(name) == num_values:
        return False
    twice = re.compile(rb"%b[ \t\r]*:[^\n]*%b[ \t\r]*:" % ((re.escape(name),) * 2))
    for match in twice.finditer(block):
        start, end = block.rfind(b"\n", 0, match.start()) + 1, block.find(b"\n", match.end())
        row = _load(block[start : None if end < 0 else end])
        if not isinstance(row, _Object) or key in row.repeated:
            return True
    return False


class _Object(dict[str, Any]):
    """JSON object that knows which of its keys were there twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = [] if len(self) == len(pairs) else repeated_keys(pairs)


def _parse_line(
    line: bytes, keys: Sequence[str], lists: Sequence[str], flat: Sequence[str] = ()
) -> list[Any] | str:
    """Returns the values of a line, or what is wrong with it.

    This accepts what polars refuses without need: NaN, Infinity, numbers beyond float64 and bytes
    that are not UTF-8.
    """
    row = _load(line)
    if not isinstance(row, _Object):
        return row
    if repeated := [key for key in keys if key in row.repeated]:
        return f"has {', '.join(map(repr, repeated))} twice"
    for key in lists:
        if not isinstance(row.get(key), list | None):
            return f"holds {reprlib.repr(row[key])} under {key!r}, which must be a list"
    for key in flat:
        values = row.get(key) if key in lists else [row.get(key)]
        if any(isinstance(value, dict | list) for value in values or ()):
            must = "a list of texts or numbers" if key in lists else "a text or number"
            return f"holds {reprlib.repr(row[key])} under {key!r}, which must be {must}"
    return [
        None
        if row.get(key) is None
        else list(_texts(row[key]))
        if key in lists
        else _text(row[key])
        for key in keys
    ]


def _load(line: bytes) -> _Object | str:
    """Parses a line; returns what is wrong with it if it is no object."""
    try:
        row = json.loads(line.decode(errors="replace"), object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    return row if isinstance(row, _Object) else f"is a {type(row).__name__}"


def _texts(values: list[Any]) -> Iterator[str | None]:
    for value in values:
        yield None if value is None else _text(value)


def _text(value: Any) -> str:
    """Returns a value as polars reads it into a string: 4.0 is "4"."""
    if not isinstance(value, str):
        return json.dumps(value).removesuffix(".0")
    return without_surrogates(value)


def without_surrogates(text: str) -> str:
    """Returns the text with U+FFFD in place of each surrogate, which is no character."""
    return _SURROGATES.sub("\ufffd", text)
