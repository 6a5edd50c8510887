from slow import dense, expert, formula, gated, of_task, own_linear, tower

OPTIONS = {"num_experts": 3, "expert_dims": [8, 5], "tower_dims": [3]}


def outputs(model, x):
    return [expert(model.experts, x, e) for e in range(model.experts.num_experts)]


@formula(OPTIONS, private=("towers.",))
def omoe(model, x, s):
    return tower(model.towers, gated(dense(model.gate, x), outputs(model, x)), s)


@formula(OPTIONS, private=("towers.", "gates."), variants=[{"gates": "factored"}])
def mmoe(model, x, s):
    mixed = []
    for t in range(model.num_tasks):
        if model.task_gates is None:
            gate = own_linear(model.gates, x, s, t, model.num_tasks)
        else:
            of_tasks = dense(model.task_gates, x)
            gate = own_linear(model.gates, x, s) + of_task(of_tasks, t, model.num_tasks)
        mixed.append(gated(gate, outputs(model, x)))
    return tower(model.towers, mixed, s)
