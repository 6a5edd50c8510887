import math

import torch
from torch.nn import functional as F

from slow import dense, formula, gated, tower


# Bottoms serve the scenarios behind them in the chain too.
@formula({"bottom_dims": [8, 5], "tower_dims": [3]}, private=("towers.",))
def aitm(model, x, s):
    for j in range(s + 1):
        b = x
        for layer in model.bottoms:
            b = F.relu(b @ layer.weight[j] + layer.bias[j])
        if j == 0:
            u = b
            continue
        p = dense(model.transfers[j - 1], u)
        scores = [dense(model.key, h) @ dense(model.query, h) / math.sqrt(len(h)) for h in (p, b)]
        u = gated(torch.stack(scores), [dense(model.value, p), dense(model.value, b)])
    return tower(model.towers, u, s)
