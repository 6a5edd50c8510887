"""Matrix products of an exported program in bfloat16: half the bytes, twice the products a second.

Everything else stays float32: sums within a product, activations between products, and products
too small to gain, such as those that give the logits, whose steps would otherwise be seen.
"""

import torch
from torch.export import ExportedProgram
from torch.fx import Node

LEAST = 16
"""Columns on both sides of a product that is worth it."""
PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
)
CAST = torch.ops.prims.convert_element_type.default


def in_bfloat16(program: ExportedProgram) -> tuple[ExportedProgram, int]:
    """The program with its larger products in bfloat16, and how many those are."""
    program = program.run_decompositions()
    graph, count = program.graph_module.graph, 0
    halves: dict[Node, Node] = {}
    for node in list(graph.nodes):
        if node.target not in PRODUCTS or not _is_large(node):
            continue
        count += 1
        for given in node.all_input_nodes:
            if given not in halves:
                with graph.inserting_after(given):
                    halves[given] = _cast(given, torch.bfloat16)
        node.args = tuple(halves[given] for given in node.args)
        with graph.inserting_after(node):
            whole = _cast(node, torch.float32)
        node.replace_all_uses_with(whole, delete_user_cb=lambda user, keep=whole: user is not keep)
        node.meta["val"] = node.meta["val"].to(torch.bfloat16)
    graph.lint()
    program.graph_module.recompile()
    return program, count


def _is_large(product: Node) -> bool:
    sizes = (product.args[-2].meta["val"].shape[-1], product.meta["val"].shape[-1])  # type: ignore[union-attr]
    plain = all(isinstance(given, Node) for given in product.args) and not product.kwargs
    return plain and all(isinstance(size, int) and size >= LEAST for size in sizes)


def _cast(node: Node, kind: torch.dtype) -> Node:
    cast = node.graph.call_function(CAST, (node, kind))
    cast.meta["val"] = node.meta["val"].to(kind)
    return cast
