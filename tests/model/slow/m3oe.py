import torch
from torch.nn import functional as F

from slow import dense, expert, formula, gated, own_linear, tower


def block(modules, x):
    linear, norm = modules[0], modules[1]
    h = dense(linear, x)
    h = (h - h.mean()) / (h.var(correction=0) + norm.eps).sqrt()
    return F.relu(norm.weight * h + norm.bias)


def blended(experts, e, own, share):
    beta = torch.sigmoid(share)
    others = [expert(experts, e, j) for j in range(experts.num_experts) if j != own]
    return beta * expert(experts, e, own) + (1 - beta) / len(others) * sum(others)


@formula(
    {"dim": 6, "num_shared": 3, "expert_dims": [8, 5], "tower_dims": [3]},
    private=("towers.", "gates.", ".own_weight", ".own_bias"),
)
def m3oe(model, x, s):
    star = model.star
    weight, bias = star.shared_weight * star.own_weight[s], star.shared_bias + star.own_bias[s]
    e = block(model.star_block, x @ weight + bias) + block(model.skip_block, x)
    fused = []
    for t in range(model.num_tasks):
        gate = own_linear(model.gates, e.detach(), s, t, model.num_tasks)
        h = gated(gate, [expert(model.shared, e, k) for k in range(3)])
        d = blended(model.domain, e, s, model.own_share)
        h = h + torch.sigmoid(model.scenario_share) * d
        if model.num_tasks > 1:
            c = blended(model.task, e, t, model.own_task_share)
            h = h + torch.sigmoid(model.task_share) * c
        fused.append(h)
    return tower(model.towers, fused, s)
