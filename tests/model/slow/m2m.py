import torch
from torch.nn import functional as F

from slow import dense, expert, formula, gated, layers

OPTIONS = {"num_experts": 3, "expert_dims": [8, 5], "num_tower_layers": 2, "num_meta_layers": 2}
OPTIONS |= {"head_dims": [8], "scenario_dim": 3, "view_dims": [6]}


def meta(unit, h, view):
    for weight, bias in zip(unit.weights, unit.biases, strict=True):
        matrix = dense(weight, view).reshape(len(h), len(h))
        h = F.leaky_relu(h @ matrix + dense(bias, view))
    return h


@formula(OPTIONS, private=("scenario_embedding",))
def m2m(model, x, s):
    view = layers(model.view, model.scenario_embedding.weight[s])
    outputs = [expert(model.experts, x, e) for e in range(model.experts.num_experts)]
    logits = []
    pairs = zip(model.heads, model.task_embedding.weight, strict=True)
    for t, (head, task) in enumerate(pairs):
        scores = [meta(model.attention, torch.cat([h, task]), view) for h in outputs]
        h = gated(torch.cat([model.score.weight @ score for score in scores]), outputs)
        for unit in list(model.tower)[t :: model.num_tasks]:
            h = F.leaky_relu(meta(unit, h, view) + h)
        logits.append(dense(head[1], layers(head[0], h)))
    return torch.cat(logits)
