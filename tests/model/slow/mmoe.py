from slow import dense, expert, formula, gated, tower

OPTIONS = {"num_experts": 3, "expert_dims": [8, 5], "tower_dims": [3]}


def outputs(model, x):
    return [expert(model.experts, x, e) for e in range(model.experts.num_experts)]


@formula(OPTIONS, private=("towers.",))
def omoe(model, x, s):
    return tower(model.towers, gated(dense(model.gate, x), outputs(model, x)), s)


@formula(OPTIONS, private=("towers.", "gates."))
def mmoe(model, x, s):
    gate = x @ model.gates.weight[s] + model.gates.bias[s]
    return tower(model.towers, gated(gate, outputs(model, x)), s)
