"""Checks of files that people write: strict models and a sentence for a fault."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
)

from msrec.data.io.paths import AnyPath, local_path, to_path

# Options have upper bounds: a slip such as 10**12 is refused before it takes all memory.
MAX_COUNT, MAX_WIDTH = 1024, 1 << 16
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
"""Number of modules of one kind, such as experts or layers."""
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
"""Size of a layer, of a vector that is in no table, or of a sequence."""
VectorSize = Annotated[int, Field(ge=4, le=2048, multiple_of=4)]
"""Size of a table's vectors that FBGEMM's kernels take."""
Widths = Annotated[list[Width], Field(max_length=64)]
"""Layer sizes of an MLP."""
BatchRows = Annotated[int, Field(ge=1, le=1 << 24)]
"""Rows, or tokens, that are computed at once."""
Precision = Literal["fp32", "tf32", "bf16"]
"""Precision of the matrix products of training steps."""
Steps = Annotated[int, Field(ge=1, le=10**12)]
"""Number of steps, rows or epochs."""
MAX_FLOAT = 1e30
"""Not far above it, float32 is infinite."""
Positive = Annotated[float, Field(gt=0, le=MAX_FLOAT)]
"""Rate or scale above zero."""
NotNegative = Annotated[float, Field(ge=0, le=MAX_FLOAT)]
"""Rate, weight or scale; zero turns it off."""
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
"""Seed of random numbers, of a size that every library takes."""
LocalPath = Annotated[Path, PlainValidator(local_path, json_schema_input_type=str)]
FolderPath = Annotated[
    AnyPath, PlainValidator(to_path, json_schema_input_type=str), PlainSerializer(str)
]
"""Path of a folder, local or remote."""


_CLASS = re.compile(r"a valid dictionary( or instance of \w+)?")


class StrictModel(BaseModel):
    """Frozen model that refuses unknown keys, infinity and NaN; docstrings describe its fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def first_error(error: ValidationError) -> str:
    """Returns `field.name: what must hold` for the first fault; `file` if it is not in a field."""
    first, *others = error.errors()
    where = list(first["loc"])
    if where and "[" in str(where[-1]):  # one of several types; the fault deepest in a value counts
        depth = len(where) - 1
        same = [each for each in (first, *others) if list(each["loc"][:depth]) == where[:depth]]
        first = max(same, key=lambda each: len(each["loc"]))
        where = [*first["loc"][:depth], *first["loc"][depth + 1 :]]
    if first["type"] == "extra_forbidden":
        return f"{'.'.join(map(str, where))}: this key is not known"
    must = _CLASS.sub("keys with values", first["msg"].removeprefix("Value error, ").rstrip("."))
    return f"{'.'.join(map(str, where)) or 'file'}: {must}"
