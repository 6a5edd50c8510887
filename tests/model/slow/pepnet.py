import torch
from zoo import LAYOUT

from slow import dense, formula, layers, own_linear

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
    prior, logits = torch.cat([user, item, x.detach()]), []
    for t in range(model.num_tasks):
        h = x
        for i, (gate, layer) in enumerate(zip(model.gates, model.layers, strict=True)):
            hidden = torch.relu(dense(gate.hidden, prior))
            delta = 2 * torch.sigmoid(own_linear(gate.own, hidden, s, t, model.num_tasks))
            h = own_linear(layer, h * delta, s, t, model.num_tasks)
            h = torch.relu(h) if i + 1 < len(model.layers) else h
        logits.append(h)
    return torch.cat(logits)


@formula(EPNET, private=("towers.layers.", ".own.", "scenario_embedding"))
def pepnet(model, x, s):
    return ppnet(model.towers, gated_input(model.gate, x, s), s)
