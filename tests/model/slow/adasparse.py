import torch
from torch.nn import functional as F

from slow import dense, formula


def factor(model, v):
    """One neuron at a time."""
    p = 1 / (1 + (-(model.alpha * v)).exp())
    if model.form == "scaling":
        return model.beta / (1 + (-v).exp())
    if model.form == "binary":  # 0 or 1, with the gradient of p
        return (p > model.eps).float() + p - p.detach()
    return model.beta * p if p > model.eps else 0 * p


@formula(
    {"dims": [8, 5], "scenario_dim": 3, "eps": 0.45, "alpha_step": 0.0},
    variants=[{"form": "binary"}, {"form": "scaling"}, {"alpha": 3.0}],
    private=("scenario_embedding",),
)
def adasparse(model, x, s):
    for i, (pruner, layer) in enumerate(zip(model.pruners, model.layers, strict=True)):
        v = pruner.weight @ torch.cat([model.scenario_embedding.weight[s], x])
        x = dense(layer, x * torch.stack([factor(model, number) for number in v]))
        x = F.relu(x) if i + 1 < len(model.layers) else x
    return x
