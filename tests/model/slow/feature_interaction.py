import torch
from zoo import LAYOUT

from slow import dense, formula, layers


@formula({"dims": [8, 5]})
def dlrm(model, x, s):
    """x in the tests: a bottom output of size D, F vectors, and one column more."""
    dim = LAYOUT.dim
    vectors = [x[i * dim : (i + 1) * dim] for i in range(len(LAYOUT.names) + 1)]
    dots = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
    top = torch.cat([vectors[0], torch.stack(dots), x[(len(LAYOUT.names) + 1) * dim :]])
    return dense(model.head, layers(model.mlp, top))


@formula(
    {"num_cross": 3, "dims": [8, 5]},
    variants=[{"structure": "stacked"}, {"rank": 2}],
)
def dcnv2(model, x, s):
    crossed = x
    for layer in model.cross:
        linear = layer if isinstance(layer, torch.nn.Linear) else layer[1]
        h = crossed if layer is linear else layer[0].weight @ crossed
        crossed = x * dense(linear, h) + crossed
    if model.parallel:
        return dense(model.head, torch.cat([crossed, layers(model.mlp, x)]))
    return dense(model.head, layers(model.mlp, crossed))


@formula({"dims": [8, 5]})
def deepfm(model, x, s):
    starts = [LAYOUT.start + i * LAYOUT.dim for i in range(len(LAYOUT.names))]
    vectors = [x[start : start + LAYOUT.dim] for start in starts]
    pairs = sum(vectors[i] * vectors[j] for i in range(len(vectors)) for j in range(i))
    pairs = pairs.sum() if model.pair_weights is None else model.pair_weights.T @ pairs
    return dense(model.first_order, x) + pairs + dense(model.head, layers(model.mlp, x))
