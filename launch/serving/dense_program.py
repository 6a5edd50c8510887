"""Program of an export: the dense part of a model, by torch.export and compiled by AOTInductor."""

import logging
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from msrec.launch.serving.export_folder import Manifest, cpu_kind
from msrec.launch.serving.lower_precision import lower_products
from msrec.model.serving_model import ServingModel

PROGRAM_FILE = "dense.pt2"
COMPILED_FILE = "dense_compiled.pt2"
COMPILERS = ("g++", "clang++", "c++")
MAX_ROWS = 1 << 20
"""Most rows, histories and distinct items of a call."""
logger = logging.getLogger(__name__)


def write_program(
    model: ServingModel, manifest: Manifest, num_dense: int, folder: Path, compiled: bool
) -> None:
    """Writes the program, and the compiled one if `compiled` is set and there is a compiler."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # inside torch
        program = export_program(model, manifest, num_dense)
        program = lower_products(program, manifest.dense)
        torch.export.save(program, folder / PROGRAM_FILE)
        if not compiled or not any(map(shutil.which, COMPILERS)):
            return
        # Otherwise the number of this machine's threads is compiled in, and what depends on weights
        # alone is computed in every call. Packed weights are slower for a few rows.
        settings = {"cpp.dynamic_threads": True, "freezing": True, "cpp.weight_prepack": False}
        with torch._inductor.config.patch(settings), torch.no_grad():  # freezing needs no_grad
            path = str(folder / COMPILED_FILE)
            torch._inductor.aoti_compile_and_package(program, package_path=path)


def load_program(folder: Path, manifest: Manifest, compiled: bool) -> tuple[Any, bool]:
    """Loads the compiled program if `compiled` is set and it fits this CPU, else the other one.

    Returns:
        The program, and whether it is the compiled one.
    """
    if compiled and (folder / COMPILED_FILE).is_file():
        if manifest.cpu == cpu_kind():
            package = torch._inductor.aoti_load_package(str(folder / COMPILED_FILE))
            return partial(_run_compiled, package.loader), True
        logger.warning(
            "%s was compiled for %s, but this is %s: using the program that is not compiled",
            *(folder, manifest.cpu, cpu_kind()),
        )
    return torch.export.load(folder / PROGRAM_FILE).module(), False


def _run_compiled(loader: Any, *inputs: Any) -> Any:
    """Returns the scores; the package itself would parse the form of its inputs in every call."""
    (scores,) = loader.boxed_run(tree_leaves(inputs))
    return scores


def export_program(model: ServingModel, manifest: Manifest, num_dense: int) -> ExportedProgram:
    """Returns the program of a model, for any numbers of rows, histories and distinct items."""
    inputs: tuple[Any, ...] = (
        torch.zeros(4, manifest.pooled_width),
        torch.ones(4, model.num_features),
        torch.zeros(4, num_dense),
        torch.zeros(4, dtype=torch.int64),
    )
    rows, shapes = {0: _size("rows")}, list[Any]()
    shapes += [rows] * len(inputs)
    if manifest.sequence is not None:
        histories, items = {0: _size("histories")}, {0: _size("items")}
        events = torch.zeros(3, manifest.sequence.max_len, dtype=torch.int64)
        row = torch.zeros(4, dtype=torch.int64)
        tables = [torch.zeros(5, table.dim) for table in manifest.sequence.tables]
        inputs += ((row, row.clone(), events, events.clone(), events.float(), *tables),)
        shapes.append((rows, rows, *[histories] * 3, *[items] * len(tables)))
    with torch.no_grad():
        return torch.export.export(model, inputs, dynamic_shapes=tuple(shapes))


def _size(name: str) -> Any:
    """Returns a dimension of any size from 2; torch.export treats a size of 1 as a constant."""
    return torch.export.Dim(name, min=2, max=MAX_ROWS)
