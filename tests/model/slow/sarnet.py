from slow import dense, expert, formula, gated, layers, specific_expert


@formula(
    {"num_shared": 3, "num_specific": 2, "expert_dims": [8, 6], "dims": [8]},
    private=("own_", "specific."),
)
def sarnet(model, x, s):
    x = model.own_scale[s] * x + model.own_shift[s]
    outputs = [expert(model.shared, x, e) for e in range(model.shared.num_experts)]
    outputs += [specific_expert(model.specific, x, s, e) for e in range(2)]
    return dense(model.head, layers(model.mlp, gated(dense(model.gate, x), outputs)))
