import torch
from zoo import LAYOUT

from slow import dense, formula, layers

EPNET = {"dims": [8, 5], "scenario_dim": 3, "gate_dim": 4}


def gated_input(embedding_gate, x, s):
    prior = torch.cat([embedding_gate.scenario_embedding.weight[s], x.detach()])
    hidden = torch.relu(dense(embedding_gate.gate.hidden, prior))
    return x * 2 * torch.sigmoid(dense(embedding_gate.gate.out, hidden))


@formula(EPNET, private=("scenario_embedding",))
def epnet(model, x, s):
    return dense(model.head, layers(model.mlp, gated_input(model.gate, x, s)))


@formula({"dims": [8, 5], "gate_dim": 4}, private=("layers.", ".own."))
def ppnet(model, x, s):
    vectors = x[LAYOUT.start : LAYOUT.start + len(LAYOUT.names) * LAYOUT.dim].chunk(3)
    user, item = (vectors[LAYOUT.names.index(name)] for name in ("user_id", "item_id"))
    prior, h = torch.cat([user, item, x.detach()]), x
    for i, (gate, layer) in enumerate(zip(model.gates, model.layers, strict=True)):
        hidden = torch.relu(dense(gate.hidden, prior))
        delta = 2 * torch.sigmoid(hidden @ gate.own.weight[s] + gate.own.bias[s])
        h = (h * delta) @ layer.weight[s] + layer.bias[s]
        h = torch.relu(h) if i + 1 < len(model.layers) else h
    return h


@formula(EPNET, private=("towers.layers.", ".own.", "scenario_embedding"))
def pepnet(model, x, s):
    return ppnet(model.towers, gated_input(model.gate, x, s), s)
