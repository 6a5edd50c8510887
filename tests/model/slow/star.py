import torch
from torch.nn import functional as F

from slow import dense, formula, layers, of_task


def star_linear(layer, h, s, t=0, num_tasks=1):
    weight = of_task(layer.shared_weight * layer.own_weight[s], t, num_tasks)
    return h @ weight + of_task(layer.shared_bias + layer.own_bias[s], t, num_tasks)


def star_layers(modules, h, s):
    for i, layer in enumerate(modules):
        h = star_linear(layer, h, s)
        h = F.relu(h) if i + 1 < len(modules) else h
    return h


@formula(
    {"dims": [8, 6, 5], "aux_dims": [4], "scenario_dim": 3},
    variants=[{"dims": [5]}, {"dims": []}],
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
    *shared, last = model.layers
    for layer in shared[:-1]:
        h = F.relu(star_linear(layer, h, s))
    logits = []
    for t in range(model.num_tasks):
        own = h
        for layer in shared[-1:]:
            own = F.relu(star_linear(layer, own, s, t, model.num_tasks))
        logits.append(star_linear(last, own, s, t, model.num_tasks))
    return torch.cat(logits) + dense(model.aux[1], aux)


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
