"""Manifest of an export folder, which is checked before any other file is read.

The folder::

    export.json             manifest: settings, versions, checksums, comparison with the run
    dataset.yaml            schema: scenarios and features
    vocabularies/           raw values and their table rows
    users.parquet, items.parquet        keys only
    rare.npz                rare ids, which training replaced by row 0
    semantic_ids.npz        codes of the items, if the run has semantic ids
    managed/FEATURE.parquet the ids of managed features and their table rows
    tables/NAME.npy         rows of each table, int8 or float16
    item-tables/NAME.npy    rows of tables by item: vectors of sources, and of a sequence encoder
    histories/NAME.npy      newest events of each user, for a model that reads ordered histories
    dense.pt2               dense part of the model as a program of torch.export
    dense_compiled.pt2      the same program compiled by AOTInductor for one kind of CPU
"""

import platform
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ValidationError

from msrec.data.io.atomic_files import check_files, checksums
from msrec.data.io.outputs import FolderKind
from msrec.data.io.validation import StrictModel, first_error
from msrec.data.loading.behaviour_history import Side
from msrec.data.loading.managed_rows import MANAGED
from msrec.data.schema import EventChoice, HistoryProtocol, Split
from msrec.launch.versions import installed, is_cpu_build

MANIFEST_FILE = "export.json"
RARE_IDS_FILE = "rare.npz"
SEMANTIC_IDS_FILE = "semantic_ids.npz"
TABLES, ITEM_TABLES = "tables", "item-tables"
FORMAT_VERSION = 3
EXPORT = FolderKind(
    "an export",
    MANIFEST_FILE,
    (
        *(MANIFEST_FILE, "dataset.yaml", "users.parquet", "items.parquet", RARE_IDS_FILE),
        *(SEMANTIC_IDS_FILE, "dense.pt2", "dense_compiled.pt2", "vocabularies/*.parquet"),
        *(f"{TABLES}/*.npy", f"{ITEM_TABLES}/*.npy", "histories/*.npy", f"{MANAGED}/*.parquet"),
        "item-sources/*.npy",  # of version 2
    ),
)
INT8_SCALE_BYTES = 4
"""Bytes in front of each int8 row: its scale and offset, float16 each."""
TableDtype = Literal["int8", "float16"]
DenseDtype = Literal["float32", "bfloat16", "int8"]


class ExportTable(StrictModel):
    """Embedding table of an export, and the features that look it up."""

    name: str
    rows: int
    dim: int
    kind: TableDtype
    features: list[str]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in the file."""
        return self.dim + INT8_SCALE_BYTES if self.kind == "int8" else 2 * self.dim

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_bytes


class SequenceFiles(StrictModel):
    """Tables by item and histories of an export, for a model that reads ordered histories."""

    tables: list[ExportTable]
    """Vectors of each source of the interest blocks, in their order, then those of the encoder."""
    protocol: HistoryProtocol
    """Splits whose rows are events."""
    events: EventChoice
    """Rows that are events."""
    max_len: int
    """Newest events per user."""
    num_events: int
    history_bytes: int
    """Bytes of the files with histories."""


class Parity(StrictModel):
    """Comparison of the scores of an export with those of its run, on the same rows."""

    split: Split
    rows: int
    auc: dict[str, tuple[float, float]]
    """Binary label -> AUC of the run and of the export; labels with one class are left out."""
    largest_difference: float
    """Of all scores; those that are no probabilities are divided by their standard deviation."""
    mean_difference: float

    @property
    def auc_difference(self) -> float:
        """Largest difference of the two AUCs of a label."""
        return max((abs(export - run) for run, export in self.auc.values()), default=0.0)


class Manifest(StrictModel):
    """Contents of `export.json`."""

    version: int
    run: str
    checkpoint: str
    backbone: str
    parameters: int
    """Number of parameters of the dense part."""
    dense: DenseDtype
    """Dtype of the larger matrix products."""
    scale: float
    per_scenario: bool
    tables: list[ExportTable]
    features: list[str]
    """In the order of lookup: features of the schema, then histories, then LLM knowledge."""
    histories: list[Side]
    known: list[Side]
    """Sides with a table of histories, and sides with a table of LLM knowledge."""
    labels: list[str]
    """Labels that have scores, in their order."""
    scores: list[str]
    """Columns of the scores in files, as those of predictions."""
    combined: str | None = None
    """Formula of the combined score; null if there is none."""
    calibration: str | None = None
    """Method by which the scores of binary labels are calibrated; null if they are not."""
    sequence: SequenceFiles | None = None
    """Files of ordered histories; null if the model reads none."""
    versions: dict[str, str | None]
    cpu: str
    parity: Parity | None
    crc32: dict[str, str]

    @property
    def pooled_width(self) -> int:
        """Columns of the first input of the program: the vectors of all features."""
        dim_of = {name: table.dim for table in self.tables for name in table.features}
        return sum(dim_of[name] for name in self.features)


class _Version(BaseModel):
    """Version of a manifest, which decides its other fields."""

    version: int


def package_versions() -> dict[str, str | None]:
    """Returns the versions that must be the same for writing and for reading an export."""
    fbgemm = "fbgemm-gpu-cpu" if is_cpu_build() else "fbgemm-gpu"
    return {
        "msrec": installed("msrec"),
        "torch": (installed("torch") or "").split("+")[0],
        "fbgemm": installed(fbgemm),
    }


def cpu_kind() -> str:
    """Returns the architecture and instruction set that a program is compiled for."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def export_version(folder: Path) -> str:
    """Returns the CRC-32 of `export.json`, which has the checksums of all other files."""
    return checksums(folder, [folder / MANIFEST_FILE])[MANIFEST_FILE]


def write_values(values: pa.Table, path: Path) -> None:
    """Writes a table of one column, in bytes that depend on nothing but the values."""
    pq.write_table(values.combine_chunks(), path)


def read_manifest(folder: Path, *, allow_unfinished: bool = False) -> Manifest:
    """Reads `export.json` and checks versions and the checksum of every file.

    Args:
        folder: an export.
        allow_unfinished: accept an export that has not been compared with its run yet.

    Raises:
        FileNotFoundError: the folder holds no export, or an unfinished one.
        ValueError: the export was made with other versions, or a file is missing or damaged.
    """
    manifest = read_manifest_file(folder)
    installed_here = package_versions()
    for package, version in manifest.versions.items():
        if installed_here.get(package) != version:
            raise ValueError(
                f"{package} must be {version}, because {folder} was exported with it; found "
                f"{installed_here.get(package)}. Install that version, or export again."
            )
    if manifest.parity is None and not allow_unfinished:
        raise FileNotFoundError(
            f"{folder} must hold a finished export; this one was not compared with its run. Make "
            "one by `msrec export RUN`."
        )
    check_files(folder, manifest.crc32, "The export is damaged: copy it again or export again.")
    return manifest


def read_manifest_file(folder: Path) -> Manifest:
    """Reads `export.json` alone, without a check of versions and of other files.

    Raises:
        FileNotFoundError: the folder holds no export.
        ValueError: the file is of another version or damaged.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must exist: {folder} holds no export. Make one by `msrec export RUN`."
        )
    try:
        found = _Version.model_validate_json(path.read_text()).version
        if found != FORMAT_VERSION:
            raise ValueError(
                f"{path}: version must be {FORMAT_VERSION}; got {found}. Export again."
            )
        return Manifest.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}. Export again.") from None
