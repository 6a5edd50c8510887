import torch
from torch.nn import functional as F

from slow import dense, expert, specific_expert, tower

OPTIONS = {"num_levels": 2, "num_specific": 2, "num_shared": 3, "expert_dims": [6, 5]}
OPTIONS |= {"tower_dims": [3]}
VARIANTS = [{"num_levels": 1}, {"num_levels": 3, "expert_dims": [5]}]
PRIVATE = ("towers.", "last.gates", "last.specific")


def slow(model, x, s):
    """Every level for every scenario, as the paper writes it; then scenario s."""
    scenarios = range(model.num_scenarios)
    own, shared = [x for _ in scenarios], x
    for level in [*model.levels, model.last]:
        specific = [
            [
                specific_expert(level.specific, own[j], j, e)
                for e in range(level.specific.num_experts)
            ]
            for j in scenarios
        ]
        common = [expert(level.shared, shared, e) for e in range(level.shared.num_experts)]
        gates = [
            F.softmax(own[j] @ level.gates.weight[j] + level.gates.bias[j], dim=0)
            for j in scenarios
        ]
        own = [gates[j] @ torch.stack(specific[j] + common) for j in scenarios]
        if level.shared_gate is not None:
            gate = F.softmax(dense(level.shared_gate, shared), dim=0)
            shared = gate @ torch.stack([h for some in specific for h in some] + common)
    return tower(model.towers, own[s], s)
