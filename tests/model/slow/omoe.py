from torch.nn import functional as F

from slow import dense, expert, tower

OPTIONS = {"num_experts": 3, "expert_dims": [8, 5], "tower_dims": [3]}
PRIVATE = ("towers.",)


def slow(model, x, s):
    gate = F.softmax(dense(model.gate, x), dim=0)
    mixed = sum(gate[e] * expert(model.experts, x, e) for e in range(model.experts.num_experts))
    return tower(model.towers, mixed, s)
