from slow import dense, expert, formula, gated, own_linear, specific_expert, tower

OPTIONS = {"num_levels": 2, "num_specific": 2, "num_task": 1, "num_shared": 3}
OPTIONS |= {"expert_dims": [6, 5], "tower_dims": [3]}


def experts_of(experts, x, group):
    return [specific_expert(experts, x, group, e) for e in range(experts.num_experts)]


@formula(
    OPTIONS,
    variants=[{"num_levels": 1}, {"num_levels": 3, "expert_dims": [5], "num_task": 2}],
    private=("towers.", "last.gates", "last.specific"),
)
def ple(model, x, s):
    """Every level before the last for all scenarios and tasks; then the last for scenario s."""
    scenarios, tasks = range(model.num_scenarios), range(model.num_tasks)
    own, of_task, shared = [x for _ in scenarios], [x for _ in tasks], x
    for level in model.levels:
        specific = [experts_of(level.specific, own[j], j) for j in scenarios]
        common = [expert(level.shared, shared, e) for e in range(level.shared.num_experts)]
        every = [h for outputs in specific for h in outputs]
        own = [gated(own_linear(level.gates, own[j], j), specific[j] + common) for j in scenarios]
        if model.num_tasks > 1:
            by_task = [experts_of(level.task_experts, of_task[t], t) for t in tasks]
            every += [h for outputs in by_task for h in outputs]
            gates = [own_linear(level.task_gates, of_task[t], t) for t in tasks]
            of_task = [gated(gates[t], by_task[t] + common) for t in tasks]
        shared = gated(dense(level.shared_gate, shared), every + common)
    level, mixed = model.last, []
    common = [expert(level.shared, shared, e) for e in range(level.shared.num_experts)]
    for t in tasks:
        outputs = experts_of(level.specific, own[s], s)
        if model.num_tasks > 1:
            outputs += experts_of(level.task_experts, of_task[t], t)
        gate = own_linear(level.gates, own[s], s, t, model.num_tasks)
        mixed.append(gated(gate, outputs + common))
    return tower(model.towers, mixed, s)
