import torch
from zoo import LAYOUT

from slow import dense

OPTIONS = {"dims": [8, 5], "gate_dim": 4}
PRIVATE = ("layers.", ".own.")


def slow(model, x, s):
    vectors = x[LAYOUT.start : LAYOUT.start + len(LAYOUT.names) * LAYOUT.dim].chunk(3)
    user, item = (vectors[LAYOUT.names.index(name)] for name in ("user_id", "item_id"))
    prior, h = torch.cat([user, item, x.detach()]), x
    for i, (gate, layer) in enumerate(zip(model.gates, model.layers, strict=True)):
        hidden = torch.relu(dense(gate.hidden, prior))
        delta = 2 * torch.sigmoid(hidden @ gate.own.weight[s] + gate.own.bias[s])
        h = (h * delta) @ layer.weight[s] + layer.bias[s]
        h = torch.relu(h) if i + 1 < len(model.layers) else h
    return h
