from torch.nn import functional as F

from slow import expert, tower

OPTIONS = {"num_experts": 3, "expert_dims": [8, 5], "tower_dims": [3]}
PRIVATE = ("towers.", "gates.")


def slow(model, x, s):
    gate = F.softmax(x @ model.gates.weight[s] + model.gates.bias[s], dim=0)
    mixed = sum(gate[e] * expert(model.experts, x, e) for e in range(model.experts.num_experts))
    return tower(model.towers, mixed, s)
