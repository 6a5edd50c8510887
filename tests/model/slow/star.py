import torch
from torch.nn import functional as F

from slow import dense, formula, layers


def star_layers(modules, h, s):
    for i, layer in enumerate(modules):
        h = h @ (layer.shared_weight * layer.own_weight[s]) + layer.shared_bias + layer.own_bias[s]
        h = F.relu(h) if i + 1 < len(modules) else h
    return h


@formula(
    {"dims": [8, 5], "aux_dims": [4], "scenario_dim": 3},
    private=(".own_", "scenario_embedding"),
    alone={"norm": "none"},
)
def star(model, x, s, mean=None, var=None):
    n, h = model.norm, x
    if n is not None:
        mean = n.moving_mean[s] if mean is None else mean
        var = n.moving_var[s] if var is None else var
        h = (n.shared_scale * n.own_scale[s]) * (x - mean) / (var + n.eps).sqrt()
        h = h + n.shared_shift + n.own_shift[s]
    aux = layers(model.aux[0], torch.cat([model.scenario_embedding.weight[s], x]))
    return star_layers(model.layers, h, s) + dense(model.aux[1], aux)


# The weights of a cluster belong to no scenario.
@formula({"num_clusters": 3, "dims": [8, 5]})
def adaptdhm(model, x, s):
    c = max(range(model.num_clusters), key=lambda c: float(x.detach() @ model.moving_centres[c]))
    return star_layers(model.layers, x, c)


def moved(centres, x, beta, num_passes):
    """AdaptDHM's centres after one training step, one row at a time."""
    for _ in range(num_passes):
        total = torch.zeros_like(centres)
        for row in x:
            total += F.softmax(centres @ row, dim=0).unsqueeze(1) * row
        centres = beta * centres + (1 - beta) * total
        centres = torch.stack([mu / mu.norm() for mu in centres])
    return centres
