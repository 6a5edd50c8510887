"""Export of a run: a folder that scores rows without the run, checked against the run."""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from msrec.data.features.vocabulary import VOCABULARIES
from msrec.data.io.atomic_files import checksums, write_json
from msrec.data.io.outputs import new_folder
from msrec.data.io.parquet_files import parquet_files, read_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.schema import Split, save_schema
from msrec.launch.build_model import model_schema
from msrec.launch.distributed import Process
from msrec.launch.evaluation.predict import score_columns, score_head
from msrec.launch.serving.dense_program import write_program
from msrec.launch.serving.export_folder import (
    EXPORT,
    FORMAT_VERSION,
    ITEM_TABLES,
    MANIFEST_FILE,
    RARE_IDS_FILE,
    SEMANTIC_IDS_FILE,
    TABLES,
    DenseDtype,
    ExportTable,
    Manifest,
    TableDtype,
    cpu_kind,
    package_versions,
    write_values,
)
from msrec.launch.serving.parity import compare_with_run
from msrec.launch.serving.quantized_tables import write_tables
from msrec.launch.serving.scorer import Scorer
from msrec.launch.serving.sequence_files import write_histories
from msrec.launch.serving.serving_tables import (
    SIDES,
    item_tables,
    knowledge_sides,
    managed_rows,
    serving_tables,
    unwrapped_dense_arch,
)
from msrec.launch.trained_run import TrainedRun, open_run, run_inputs, unwrapped
from msrec.model.serving_model import ServingModel


def export(
    run_dir: AnyPath,
    out: AnyPath,
    process: Process,
    checkpoint: AnyPath | None = None,
    split: Split = "test",
    tables: TableDtype = "int8",
    dense: DenseDtype = "float32",
    *,
    compiled: bool = True,
    overwrite: bool = False,
) -> Manifest:
    """Writes an export of a run. The folder appears only if it is complete and scores as the run.

    Args:
        run_dir: a run folder.
        out: the folder to write, local or remote.
        process: the only rank.
        checkpoint: the weights to export; None takes the checkpoint with the best validation.
        split: the split that both score for the comparison.
        tables: dtype of the trained tables.
        dense: dtype of the larger matrix products.
        compiled: also compile the program, if there is a C++ compiler.
        overwrite: replace an older export.

    Raises:
        FileNotFoundError: there is no run, no committed checkpoint or no such split.
        ValueError: `out` exists, the run cannot be served, or the AUC of the export differs.
    """
    if process.world_size != 1:
        raise ValueError(f"an export must be made by one rank; there are {process.world_size}.")
    with new_folder(out, EXPORT, run_inputs(run_dir), overwrite=overwrite) as folder:
        run = open_run(run_dir, process, checkpoint)
        run.model.eval()
        model = _serving_model(run)
        _write_encoding(run, folder)
        written = write_tables(folder / TABLES, serving_tables(run, tables))
        manifest = _new_manifest(run_dir, run, model, written, dense)
        if model.reads_sequences:
            index, max_len = run.knowledge.sequences, run.config.sequence.max_len
            assert index is not None
            by_item = write_tables(folder / ITEM_TABLES, item_tables(run, tables))
            sequence = write_histories(folder, index, max_len, by_item)
            manifest = manifest.model_copy(update={"sequence": sequence})
        write_program(model, manifest, len(run.schema.dense), folder, compiled)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        manifest = manifest.model_copy(update={"crc32": checksums(folder, paths)})
        _write_manifest(manifest, folder)
        parity = compare_with_run(run, Scorer(folder, allow_unfinished=True), process, split)
        manifest = manifest.model_copy(update={"parity": parity})
        _write_manifest(manifest, folder)
    return manifest


def _serving_model(run: TrainedRun) -> ServingModel:
    dense_arch = copy.deepcopy(unwrapped_dense_arch(run)).cpu().eval()
    num_features = len(model_schema(run.config, run.schema).sparse)
    num_histories = len(run.config.history.of)
    head = copy.deepcopy(score_head(run)).cpu()
    dim = run.config.embeddings.dim
    return ServingModel(dense_arch, head, num_features, num_histories, dim).eval()


def _new_manifest(
    run_dir: AnyPath,
    run: TrainedRun,
    model: ServingModel,
    tables: list[ExportTable],
    dense: DenseDtype,
) -> Manifest:
    histories, known = list(run.config.history.of), knowledge_sides(unwrapped_dense_arch(run))
    features = [feature.name for feature in model_schema(run.config, run.schema).sparse]
    features += [f"{side}_history" for side in histories] + [f"{side}_known" for side in known]
    return Manifest(
        version=FORMAT_VERSION,
        run=str(run_dir),
        checkpoint=run.checkpoint,
        backbone=run.config.backbone.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dense=dense,
        scale=run.config.scale,
        per_scenario=run.config.embeddings.per_scenario,
        tables=tables,
        features=features,
        histories=histories,
        known=known,
        labels=model.head.labels,
        scores=score_columns(model.head),
        combined=run.config.objective.score,
        calibration=run.calibration_method,
        versions=package_versions(),
        cpu=cpu_kind(),
        parity=None,
        crc32={},
    )


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    write_json(folder / MANIFEST_FILE, manifest.model_dump(mode="json"))


def _write_encoding(run: TrainedRun, folder: Path) -> None:
    """Writes the files that raw rows are encoded with."""
    save_schema(run.schema, folder)
    dataset = run.config.dataset
    (folder / VOCABULARIES).mkdir()
    for path in parquet_files(dataset / VOCABULARIES):
        write_values(read_parquet(path, ["value"]), folder / VOCABULARIES / path.name)
    for side in SIDES:
        name = f"{side}s.parquet"
        write_values(read_parquet(dataset / name, [f"{side}_key"]), folder / name)
    rare: dict[str, Any] = dict(run.knowledge.is_rare)
    np.savez_compressed(folder / RARE_IDS_FILE, **rare)
    managed = unwrapped(run.model).ranker.embeddings.managed
    if managed is not None:
        managed_rows(managed).save(folder)
    if run.knowledge.semantic_ids is not None:
        run.knowledge.semantic_ids.save(folder / SEMANTIC_IDS_FILE)
