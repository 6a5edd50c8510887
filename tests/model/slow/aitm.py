import math

import torch
from torch.nn import functional as F

from slow import dense, formula, gated, own_linear, tower


def attended(model, p, b):
    scores = [dense(model.key, h) @ dense(model.query, h) / math.sqrt(len(h)) for h in (p, b)]
    return gated(torch.stack(scores), [dense(model.value, p), dense(model.value, b)])


def bottom(model, x, s, t=0):
    for layer in model.bottoms:
        x = F.relu(own_linear(layer, x, s, t, model.num_tasks))
    return x


@formula({"bottom_dims": [8, 5], "tower_dims": [3]}, private=("towers.", "bottoms.", "transfers."))
def aitm(model, x, s):
    if model.num_tasks == 1:
        return over_scenarios(model, x, s)
    u = [bottom(model, x, s)]
    for t in range(1, model.num_tasks):
        transferred = own_linear(model.transfers[t - 1], u[-1], s)
        u.append(attended(model, transferred, bottom(model, x, s, t)))
    return tower(model.towers, u, s)


def over_scenarios(model, x, s):
    u = bottom(model, x, 0)
    for j in range(1, s + 1):
        u = attended(model, dense(model.transfers[j - 1], u), bottom(model, x, j))
    return tower(model.towers, u, s)
