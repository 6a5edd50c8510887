"""Matrix products of an exported program in bfloat16, for half the memory traffic.

Everything else stays float32: sums inside a product, activations between products, and small
products. Those gain nothing, and the last one gives the logits, which bfloat16 would round visibly.
"""

import torch
from torch.export import ExportedProgram
from torch.fx import Node

MIN_COLUMNS = 16
"""Fewest columns of both factors of a product that is changed."""
PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
)
CONVERT_DTYPE = torch.ops.prims.convert_element_type.default


def use_bfloat16_products(program: ExportedProgram) -> tuple[ExportedProgram, int]:
    """Returns the program with its larger products in bfloat16, and the number of those."""
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


def _is_large(product: Node) -> bool:
    factor = product.args[-2]
    has_plain_operands = all(isinstance(arg, Node) for arg in product.args) and not product.kwargs
    if not has_plain_operands or not isinstance(factor, Node):
        return False
    sizes = (factor.meta["val"].shape[-1], product.meta["val"].shape[-1])
    return all(isinstance(size, int) and size >= MIN_COLUMNS for size in sizes)


def _convert(node: Node, dtype: torch.dtype) -> Node:
    converted = node.graph.call_function(CONVERT_DTYPE, (node, dtype))
    converted.meta["val"] = node.meta["val"].to(dtype)
    return converted
