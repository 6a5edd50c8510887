import torch
from torch.nn import functional as F

from slow import dense, expert, formula, gated, tower


def block(modules, x):
    linear, norm = modules[0], modules[1]
    h = dense(linear, x)
    h = (h - h.mean()) / (h.var(correction=0) + norm.eps).sqrt()
    return F.relu(norm.weight * h + norm.bias)


@formula(
    {"dim": 6, "num_shared": 3, "expert_dims": [8, 5], "tower_dims": [3]},
    private=("towers.", "gates.", ".own_weight", ".own_bias"),
)
def m3oe(model, x, s):
    star = model.star
    weight, bias = star.shared_weight * star.own_weight[s], star.shared_bias + star.own_bias[s]
    e = block(model.star_block, x @ weight + bias) + block(model.skip_block, x)
    gate = e.detach() @ model.gates.weight[s] + model.gates.bias[s]
    fused = gated(gate, [expert(model.shared, e, k) for k in range(3)])
    beta, w = torch.sigmoid(model.own_share), torch.sigmoid(model.scenario_share)
    own = expert(model.domain, e, s)
    others = [expert(model.domain, e, j) for j in range(model.num_scenarios) if j != s]
    d = beta * own + (1 - beta) / (model.num_scenarios - 1) * sum(others)
    return tower(model.towers, fused + w * d, s)
