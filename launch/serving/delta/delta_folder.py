"""Manifest of a delta, the difference between two exports.

The folder::

    delta.json      manifest: base, checksums, and how each changed file is made
    export.json     manifest of the export that `msrec apply` makes
    rows/           changed and new rows of the arrays in .npy files, and their indices
    values/         new values at the end of the vocabularies and keys
    whole/          other files that changed

A file of the export that is in none of the folders is that of the base.
"""

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import ValidationError

from msrec.data.io.atomic_files import check_files
from msrec.data.io.outputs import FolderKind
from msrec.data.io.validation import StrictModel, first_error
from msrec.launch.serving.export_folder import MANIFEST_FILE, Manifest, read_manifest_file

DELTA_FILE = "delta.json"
FORMAT_VERSION = 1
DELTA = FolderKind(
    "a delta of two exports",
    DELTA_FILE,
    (
        *(DELTA_FILE, MANIFEST_FILE, "rows/*/*.npy", "values/*.parquet", "values/*/*.parquet"),
        *("whole/*", "whole/*/*"),
    ),
)
WRITERS = ("numpy", "pyarrow")
"""Packages whose versions may change the bytes of a file that is made from rows or values."""


class Part(StrictModel):
    """Way to make a file of the new export from that of the base."""

    kind: Literal["rows", "values", "whole"]
    """`rows` replaces and appends rows of an array, `values` appends values, `whole` replaces the
    file."""
    shape: list[int] = []
    """Of the new array, with `rows`."""
    changed: int = 0
    """Rows of the base that differ."""
    new: int = 0
    """Rows or values after those of the base."""


class Delta(StrictModel):
    """Contents of `delta.json`."""

    version: int = FORMAT_VERSION
    base: str
    """Version of the export that it changes, see `export_version`."""
    base_run: str
    base_checkpoint: str
    parts: dict[str, Part]
    """File of the export -> the way to make it; the others are those of the base."""
    writers: dict[str, str]
    """Versions of `WRITERS`."""
    num_bytes: int
    """Size of its files without delta.json."""
    export_bytes: int
    """Size of the export that it makes."""
    crc32: dict[str, str]

    @property
    def result(self) -> str:
        """Version of the export that it makes."""
        return self.crc32[MANIFEST_FILE]


def writer_versions() -> dict[str, str]:
    """Returns the versions of `WRITERS` here."""
    return {name: version(name) for name in WRITERS}


def rows_files(folder: Path, name: str) -> tuple[Path, Path]:
    """Returns the files of a delta with the indices and the rows of an array."""
    stem = folder / "rows" / name.removesuffix(".npy")
    return stem.with_name(f"{stem.name}.index.npy"), stem.with_name(f"{stem.name}.rows.npy")


def read_delta(folder: Path) -> tuple[Delta, Manifest]:
    """Reads a delta and the manifest of the export that it makes, and checks all files.

    Raises:
        FileNotFoundError: the folder holds no delta.
        ValueError: it is of another version, or damaged.
    """
    path, advice = folder / DELTA_FILE, "The delta is damaged: copy it again or make it again."
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must exist: {folder} holds no delta. Make one by `msrec export RUN --since "
            "EXPORT`."
        )
    try:
        delta = Delta.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        found = first_error(error) if isinstance(error, ValidationError) else str(error)
        raise ValueError(f"{path}: {found}. {advice}") from None
    if delta.version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: version must be {FORMAT_VERSION}; got {delta.version}. Make it again."
        )
    _require_below(path, [MANIFEST_FILE, *delta.crc32, *delta.parts])
    check_files(folder, {MANIFEST_FILE: "none"} | delta.crc32, advice)
    manifest = read_manifest_file(folder)
    _require_below(folder / MANIFEST_FILE, manifest.crc32)
    return delta, manifest


def _require_below(path: Path, names: Iterable[str]) -> None:
    """Refuses names that lead out of a folder, since a delta may come from elsewhere."""
    for name in map(PurePosixPath, names):
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{path} must name files of its folder only; found {str(name)!r}.")
