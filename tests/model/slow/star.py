import torch
from torch.nn import functional as F

from slow import dense, layers

OPTIONS = {"dims": [8, 5], "aux_dims": [4], "scenario_dim": 3}
PRIVATE = (".own_", "scenario_embedding")
ALONE = {"norm": "none"}


def slow(model, x, s, mean=None, var=None):
    n, h = model.norm, x
    if n is not None:
        mean = n.moving_mean[s] if mean is None else mean
        var = n.moving_var[s] if var is None else var
        h = (n.shared_scale * n.own_scale[s]) * (x - mean) / (var + n.eps).sqrt()
        h = h + n.shared_shift + n.own_shift[s]
    for i, layer in enumerate(model.layers):
        h = h @ (layer.shared_weight * layer.own_weight[s]) + layer.shared_bias + layer.own_bias[s]
        h = F.relu(h) if i + 1 < len(model.layers) else h
    aux = layers(model.aux[0], torch.cat([model.scenario_embedding.weight[s], x]))
    return h + dense(model.aux[1], aux)
