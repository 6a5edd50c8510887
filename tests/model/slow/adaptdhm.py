import torch
from torch.nn import functional as F

OPTIONS = {"num_clusters": 3, "dims": [8, 5]}
PRIVATE = ()  # a cluster's weights belong to no scenario


def slow(model, x, s):
    c = max(range(model.num_clusters), key=lambda c: float(x.detach() @ model.moving_centres[c]))
    for i, layer in enumerate(model.layers):
        weight = layer.shared_weight * layer.own_weight[c]
        x = x @ weight + layer.shared_bias + layer.own_bias[c]
        x = F.relu(x) if i + 1 < len(model.layers) else x
    return x


def moved(centres, x, beta, num_passes):
    """The centres after one training step, one row at a time."""
    for _ in range(num_passes):
        total = torch.zeros_like(centres)
        for row in x:
            total += F.softmax(centres @ row, dim=0).unsqueeze(1) * row
        centres = beta * centres + (1 - beta) * total
        centres = torch.stack([mu / mu.norm() for mu in centres])
    return centres
