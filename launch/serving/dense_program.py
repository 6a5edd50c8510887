"""Program of an export: the dense part of a model, by torch.export and compiled by AOTInductor."""

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from msrec.launch.serving.export_folder import Manifest, cpu_kind
from msrec.model.serving_model import ServingModel

PROGRAM_FILE = "dense.pt2"
COMPILED_FILE = "dense_compiled.pt2"
COMPILERS = ("g++", "clang++", "c++")
MAX_ROWS = 1 << 20
"""Most rows, histories and distinct items of a call."""
MIN_BFLOAT16_COLUMNS = 16
"""Fewest columns of both factors of a product that is computed in bfloat16."""
PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
)
CONVERT_DTYPE = torch.ops.prims.convert_element_type.default
logger = logging.getLogger(__name__)


def write_program(
    model: ServingModel, manifest: Manifest, num_dense: int, folder: Path, compiled: bool
) -> None:
    """Writes the program, and the compiled one if `compiled` is set and there is a compiler."""
    is_bfloat16 = manifest.dense == "bfloat16"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # inside torch
        program = export_program(model, manifest, num_dense)
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
    """Loads the compiled program if `compiled` is set and it fits this CPU, else the other one.

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


def use_bfloat16_products(program: ExportedProgram) -> tuple[ExportedProgram, int]:
    """Computes the larger matrix products of a program in bfloat16, with half the memory traffic.

    Everything else stays float32: sums inside a product, activations between products, and small
    products. Those gain nothing, and the last one gives the logits, where rounding would show.

    Returns:
        The changed program, and the number of products in bfloat16.
    """
    program = program.run_decompositions()
    graph = program.graph_module.graph
    products = [node for node in graph.nodes if node.target in PRODUCTS and _is_large(node)]
    rounded: dict[Node, Node] = {}  # each operand is converted once
    for product in products:
        for operand in product.all_input_nodes:
            if operand not in rounded:
                with graph.inserting_after(operand):
                    rounded[operand] = _convert(operand, torch.bfloat16)
        product.args = tuple(rounded[operand] for operand in product.args)
        with graph.inserting_after(product):
            result = _convert(product, torch.float32)
        product.replace_all_uses_with(
            result, delete_user_cb=lambda user, keep=result: user is not keep
        )
        product.meta["val"] = product.meta["val"].to(torch.bfloat16)
    graph.lint()
    program.graph_module.recompile()
    return program, len(products)


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


def _is_large(product: Node) -> bool:
    factor = product.args[-2]
    has_plain_operands = all(isinstance(arg, Node) for arg in product.args) and not product.kwargs
    if not has_plain_operands or not isinstance(factor, Node):
        return False
    sizes = (factor.meta["val"].shape[-1], product.meta["val"].shape[-1])
    return all(isinstance(size, int) and size >= MIN_BFLOAT16_COLUMNS for size in sizes)


def _convert(node: Node, dtype: torch.dtype) -> Node:
    converted = node.graph.call_function(CONVERT_DTYPE, (node, dtype))
    converted.meta["val"] = node.meta["val"].to(dtype)
    return converted
