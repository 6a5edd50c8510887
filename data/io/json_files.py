"""Reads JSON files that msrec wrote, and that may have been damaged since."""

import json
import reprlib
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
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError(f"{path} must be JSON; it is nested too deeply.{end}") from None
    except ValueError as error:
        raise ValueError(f"{path} must be JSON; {error}.{end}") from None
    if not isinstance(content, dict):
        found = reprlib.repr(content)
        raise ValueError(f"{path} must hold a JSON object; found {found}.{end}")
    return content
