"""The folder of an export: what it says of itself, checked before anything is read from it.

One folder::

    export.json             what follows, its versions and checksums; written last
    dataset.yaml            the schema: scenarios, features
    vocabularies/           raw values to table rows
    users.parquet, items.parquet        the keys alone
    rare.npz                ids that training took as unknown
    tables/NAME.npy         rows of each table, int8 or float16
    dense.pt2               the part over the tables, by torch.export
    dense_compiled.pt2      the same compiled by AOTInductor, for this kind of CPU
"""

import platform
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from msrec.data.io.atomic_files import check_files
from msrec.data.io.validation import first_error
from msrec.data.loading.behaviour_history import Side
from msrec.launch.serving.quantized_tables import TableSpec
from msrec.launch.versions import installed, is_cpu_build

MANIFEST, RARE = "export.json", "rare.npz"
PROGRAM, COMPILED = "dense.pt2", "dense_compiled.pt2"
VERSION = 1
Dense = Literal["float32", "bfloat16"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parity(_Part):
    """Scores of the export beside those of the run, of the same rows."""

    split: Literal["train", "valid", "test"]
    rows: int
    auc_run: float
    auc_export: float
    largest_difference: float
    mean_difference: float

    @property
    def auc_difference(self) -> float:
        """Export less run."""
        return self.auc_export - self.auc_run


class Manifest(_Part):
    """What `export.json` says."""

    version: int
    run: str
    checkpoint: str
    backbone: str
    parameters: int
    """Of the part over the tables."""
    dense: Dense
    """Of the larger matrix products."""
    scale: float
    per_scenario: bool
    tables: list[TableSpec]
    features: list[str]
    """In the order of lookup: those of the schema, then histories, then knowledge."""
    histories: list[Side]
    known: list[Side]
    versions: dict[str, str | None]
    cpu: str
    parity: Parity | None
    crc32: dict[str, str]


def versions() -> dict[str, str | None]:
    """Versions that must be the same where an export is made and where it is read."""
    fbgemm = "fbgemm-gpu-cpu" if is_cpu_build() else "fbgemm-gpu"
    return {
        "msrec": installed("msrec"),
        "torch": (installed("torch") or "").split("+")[0],
        "fbgemm": installed(fbgemm),
    }


def cpu() -> str:
    """The kind of CPU that a compiled program is for."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def read_manifest(folder: Path, *, compared: bool = True) -> Manifest:
    """Read `export.json`, and compare versions and every file with it.

    Args:
        folder: an export.
        compared: whether it must have been compared with its run, as a finished one was.

    Raises:
        FileNotFoundError: the folder holds no export, or one that was not finished.
        ValueError: it was made by other versions, or a file has changed or is not there.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must exist: {folder} holds no export. Make one by `msrec export RUN`."
        )
    try:
        manifest = Manifest.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}. Export again.") from None
    if manifest.version != VERSION:
        raise ValueError(
            f"{path}: version must be {VERSION}; got {manifest.version}. Export again."
        )
    here: dict[str, Any] = versions()
    for package, version in manifest.versions.items():
        if here.get(package) != version:
            raise ValueError(
                f"{package} must be {version}, by which {folder} was exported; found "
                f"{here.get(package)}. Install that, or export again."
            )
    if compared and manifest.parity is None:
        raise FileNotFoundError(
            f"{folder} must hold a finished export; this one was not compared with its run. Make "
            "one by `msrec export RUN`."
        )
    check_files(folder, manifest.crc32, "The export is damaged: copy it again or export again.")
    return manifest
