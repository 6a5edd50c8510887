"""Reads JSON of which no object has a key twice, such as files that msrec wrote."""

import json
import reprlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from msrec.data.io.paths import AnyPath


def read_json_object(path: AnyPath, advice: str = "") -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
        path: the file.
        advice: a sentence that says what to do about a broken file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON object.
    """
    end = f" {advice}" if advice else ""
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError(f"{path} must be JSON; it is nested too deeply.{end}") from None
    except ValueError as error:
        raise ValueError(f"{path} must be JSON; {error}.{end}") from None
    if not isinstance(content, dict):
        found = reprlib.repr(content)
        raise ValueError(f"{path} must hold a JSON object; found {found}.{end}")
    return content


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object of which no key is there twice; the `object_pairs_hook` of parsers.

    Raises:
        ValueError: names the key.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"an object has the key {reprlib.repr(repeated_keys(pairs)[0])} twice")
    return content


def repeated_keys(pairs: Sequence[tuple[str, Any]]) -> list[str]:
    """Returns the keys that are there more than once."""
    return [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
