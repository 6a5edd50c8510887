"""A run to a folder that serves it: int8 tables, an exported program, checked against the run."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from msrec.data.convert.dataset_writer import new_folder
from msrec.data.features.vocabulary import VOCABULARIES
from msrec.data.io.atomic_files import checksums, write_json
from msrec.data.io.parquet_files import parquet_files, read_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.schema import Split, save_schema
from msrec.launch.distributed import Process
from msrec.launch.serving.bf16_lowering import in_bfloat16
from msrec.launch.serving.export_folder import (
    COMPILED,
    MANIFEST,
    PROGRAM,
    RARE,
    VERSION,
    Dense,
    Manifest,
    cpu,
    versions,
)
from msrec.launch.serving.knowledge_tables import FoldedRun, fold, weights
from msrec.launch.serving.parity import compare
from msrec.launch.serving.quantized_tables import Kind, file_of, quantised
from msrec.launch.serving.request_rows import SIDES
from msrec.launch.serving.scorer import Scorer
from msrec.launch.trained_run import TrainedRun, open_run

ROWS = "rows"


def export(
    run_dir: Path,
    out: Path,
    process: Process,
    checkpoint: Path | None = None,
    split: Split = "test",
    kind: Kind = "int8",
    dense: Dense = "float32",
    *,
    compiled: bool = True,
    overwrite: bool = False,
) -> Manifest:
    """Write an export; it appears whole, and only if it scores as the run does.

    Args:
        run_dir: a run folder.
        out: the folder to make.
        process: the only rank.
        checkpoint: which weights; None takes the one with the best validation.
        split: whose rows the two are compared on.
        kind: of the trained tables.
        dense: of the larger matrix products over them.
        compiled: compile the program too; needs a C++ compiler.
        overwrite: replace an older export.

    Raises:
        FileNotFoundError: there is no run, no committed checkpoint or no such split.
        ValueError: `out` is there, the run cannot be served, or the export ranks other rows first.
    """
    if process.world_size != 1:
        raise ValueError(f"an export must be made by one rank; there are {process.world_size}.")
    with new_folder(out, overwrite, marker=MANIFEST) as folder:
        run = open_run(run_dir, process, checkpoint)
        run.model.eval()
        folded = fold(run, kind)
        _write_dataset(run.config.dataset, run, folder)
        _write_tables(run, folded, folder)
        _write_program(folded, folder, dense, compiled)
        manifest = Manifest(
            version=VERSION,
            run=str(run_dir),
            checkpoint=run.checkpoint,
            backbone=run.config.backbone.name,
            parameters=sum(part.numel() for part in folded.served.parameters()),
            scale=run.config.scale,
            dense=dense,
            per_scenario=run.config.embeddings.per_scenario,
            tables=folded.specs,
            features=folded.features,
            histories=folded.histories,
            known=folded.known,
            versions=versions(),
            cpu=cpu(),
            parity=None,
            crc32=checksums(folder, sorted(path for path in folder.rglob("*") if path.is_file())),
        )
        _write_manifest(manifest, folder)
        parity = compare(run, Scorer(folder, compared=False), process, split)
        manifest = manifest.model_copy(update={"parity": parity})
        _write_manifest(manifest, folder)
    return manifest


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def _write_dataset(dataset: AnyPath, run: TrainedRun, folder: Path) -> None:
    """What raw rows are encoded by."""
    save_schema(run.schema, folder)
    (folder / VOCABULARIES).mkdir()
    for path in parquet_files(dataset / VOCABULARIES):
        (folder / VOCABULARIES / path.name).write_bytes(path.read_bytes())
    for side in SIDES:
        name = f"{side}s.parquet"
        pq.write_table(read_parquet(dataset / name, [f"{side}_key"]), folder / name)
    rare: dict[str, Any] = dict(run.knowledge.is_rare)
    np.savez_compressed(folder / RARE, **rare)


def _write_tables(run: TrainedRun, folded: FoldedRun, folder: Path) -> None:
    (folder / "tables").mkdir()
    for spec, chunks in weights(run, folded):
        shape = (spec.rows, spec.row_bytes)
        path = file_of(folder, spec.name)
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        start = 0
        for rows in chunks:
            file[start : start + len(rows)] = quantised(rows, spec.kind)
            start += len(rows)
        assert start == spec.rows
        file.flush()
        del file


def _write_program(folded: FoldedRun, folder: Path, dense: Dense, compiled: bool) -> None:
    # Else the number of this machine's threads is compiled in, and weights are cast in each call.
    settings = {"cpp.dynamic_threads": True, "freezing": dense == "bfloat16"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # of torch, about itself
        program = exported(folded)
        if dense == "bfloat16":
            program, _ = in_bfloat16(program)
        torch.export.save(program, folder / PROGRAM)
        if compiled and has_compiler():
            with torch._inductor.config.patch(settings):
                path = str(folder / COMPILED)
                torch._inductor.aoti_compile_and_package(program, package_path=path)


def exported(folded: FoldedRun) -> torch.export.ExportedProgram:
    """The part over the tables as a program for any number of rows from 2 on."""
    of = {name: spec.dim for spec in folded.specs for name in spec.features}
    widths = sum(of[name] for name in folded.features)
    served: nn.Module = folded.served
    num_dense = folded.num_dense
    inputs = (
        torch.zeros(4, widths),
        torch.ones(4, folded.served.num_features),
        torch.zeros(4, num_dense),
        torch.zeros(4, dtype=torch.int64),
    )
    rows = torch.export.Dim(ROWS, min=2, max=1 << 20)
    with torch.no_grad():
        return torch.export.export(served, inputs, dynamic_shapes=({0: rows},) * len(inputs))


def has_compiler() -> bool:
    """Whether AOTInductor can compile here."""
    return any(map(shutil.which, ("g++", "clang++", "c++")))
