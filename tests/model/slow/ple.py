from slow import dense, expert, formula, gated, specific_expert, tower

OPTIONS = {"num_levels": 2, "num_specific": 2, "num_shared": 3}
OPTIONS |= {"expert_dims": [6, 5], "tower_dims": [3]}


@formula(
    OPTIONS,
    variants=[{"num_levels": 1}, {"num_levels": 3, "expert_dims": [5]}],
    private=("towers.", "last.gates", "last.specific"),
)
def ple(model, x, s):
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
        own = [
            gated(own[j] @ level.gates.weight[j] + level.gates.bias[j], specific[j] + common)
            for j in scenarios
        ]
        if level.shared_gate is not None:
            every = [h for outputs in specific for h in outputs] + common
            shared = gated(dense(level.shared_gate, shared), every)
    return tower(model.towers, own[s], s)
