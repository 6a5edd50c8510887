"""Checks of files that people write: strict models, plain YAML, and a sentence for a fault."""

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from msrec.data.io.paths import AnyPath

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Seven times as fast where PyYAML was built with libyaml."""


class StrictModel(BaseModel):
    """Frozen pydantic model that refuses unknown keys; a docstring below a field describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def first_error(error: ValidationError) -> str:
    """Returns `field.name: what must hold` for the first fault; `file` if it is not in a field."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "file"
    return f"{where}: {first['msg'].removeprefix('Value error, ').rstrip('.')}"


def read_yaml(path: AnyPath) -> Any:
    """Returns the plain values of a YAML file; a tag that names a Python object is refused.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not YAML.
    """
    try:
        return yaml.load(path.read_text(), _LOADER)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} must be YAML; {str(error).splitlines()[0]}.") from None
