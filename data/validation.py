"""What pydantic finds wrong, as a sentence for the person who wrote the file."""

from pydantic import ValidationError


def first_fault(error: ValidationError) -> str:
    """`field.name: what must hold`, of the first fault; `file` where it is the whole of it."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "file"
    return f"{where}: {first['msg'].removeprefix('Value error, ').rstrip('.')}"
