"""Program of an export: the dense part of a model, by torch.export and compiled by AOTInductor."""

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from msrec.launch.serving.bfloat16_products import use_bfloat16_products
from msrec.launch.serving.export_folder import Manifest, cpu_kind
from msrec.model.serving_model import ServingModel

PROGRAM_FILE = "dense.pt2"
COMPILED_FILE = "dense_compiled.pt2"
MAX_ROWS = 1 << 20
"""Most rows of a call."""
COMPILERS = ("g++", "clang++", "c++")
logger = logging.getLogger(__name__)


def write_program(
    model: ServingModel, manifest: Manifest, num_dense: int, folder: Path, compiled: bool
) -> None:
    """Writes the program, and the compiled one if `compiled` is set and there is a compiler."""
    is_bfloat16 = manifest.dense == "bfloat16"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # inside torch
        program = _export_program(model, manifest.pooled_width, num_dense)
        if is_bfloat16:
            program, _ = use_bfloat16_products(program)
        torch.export.save(program, folder / PROGRAM_FILE)
        if not compiled or not any(map(shutil.which, COMPILERS)):
            return
        # Otherwise the number of this machine's threads is compiled in, and weights are converted
        # to bfloat16 in every call.
        settings = {"cpp.dynamic_threads": True, "freezing": is_bfloat16}
        with torch._inductor.config.patch(settings):
            path = str(folder / COMPILED_FILE)
            torch._inductor.aoti_compile_and_package(program, package_path=path)


def load_program(folder: Path, manifest: Manifest, compiled: bool) -> tuple[Any, bool]:
    """Loads the compiled program if `compiled` is set and it is for this CPU, else the other one.

    Returns:
        The program, and whether it is the compiled one.
    """
    if compiled and (folder / COMPILED_FILE).is_file():
        if manifest.cpu == cpu_kind():
            return torch._inductor.aoti_load_package(str(folder / COMPILED_FILE)), True
        logger.warning(
            "%s was compiled for %s, but this is %s: using the program that is not compiled",
            *(folder, manifest.cpu, cpu_kind()),
        )
    return torch.export.load(folder / PROGRAM_FILE).module(), False


def _export_program(
    model: ServingModel, pooled_width: int, num_dense: int
) -> torch.export.ExportedProgram:
    """Returns the dense part as a program for 2 to `MAX_ROWS` rows."""
    inputs = (
        torch.zeros(4, pooled_width),
        torch.ones(4, model.num_features),
        torch.zeros(4, num_dense),
        torch.zeros(4, dtype=torch.int64),
    )
    rows = torch.export.Dim("rows", min=2, max=MAX_ROWS)
    with torch.no_grad():
        return torch.export.export(model, inputs, dynamic_shapes=({0: rows},) * len(inputs))
