import torch

from slow import dense, expert, formula, gated, layers, of_task, specific_expert

OPTIONS = {"num_shared": 2, "num_specific": 3, "expert_dims": [6, 5], "num_task_experts": 2}
OPTIONS |= {"task_expert_dims": [4], "dims": [3], "scenario_dim": 3}


# The experts of a scenario serve the others too.
@formula(OPTIONS, private=("scenario_embedding",))
def hinet(model, x, s):
    shared = gated(dense(model.shared_gate, x), [expert(model.shared, x, e) for e in range(2)])
    gates = dense(model.specific_gates, x).reshape(model.num_scenarios, 3)
    extracted = [
        gated(gates[i], [specific_expert(model.specific, x, i, e) for e in range(3)])
        for i in range(model.num_scenarios)
    ]
    likeness = dense(model.likeness, model.scenario_embedding.weight[s])
    others = [j for j in range(model.num_scenarios) if j != s]
    a = gated(torch.stack([likeness[j] for j in others]), [extracted[j] for j in others])
    c = torch.cat([shared, extracted[s], a])
    logits = []
    for t in range(model.num_tasks):
        outputs = [expert(model.task, c, e) for e in range(2)]
        if model.num_tasks > 1:
            outputs += [expert(model.own_tasks, c, e) for e in (2 * t, 2 * t + 1)]
        h = gated(of_task(dense(model.task_gate, c), t, model.num_tasks), outputs)
        mlp, head = model.other_towers[t - 1] if t else (model.mlp, model.head)
        logits.append(dense(head, layers(mlp, h)))
    return torch.cat(logits)
