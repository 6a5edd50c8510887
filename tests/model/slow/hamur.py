import torch
from torch.nn import functional as F

from slow import dense, formula, layers


def normalised(norm, h, s):
    if isinstance(norm, torch.nn.LayerNorm):
        h = (h - h.mean()) / (h.var(correction=0) + norm.eps).sqrt()
        return norm.weight * h + norm.bias
    h = (h - norm.moving_mean[s]) / (norm.moving_var[s] + norm.eps).sqrt()
    return norm.shared_scale * norm.own_scale[s] * h + norm.shared_shift + norm.own_shift[s]


@formula(
    {"dims": [8, 5], "num_adapters": 2, "adapter_dim": 3, "k": 4, "hyper_dims": [6]},
    variants=[{"norm": "layer"}, {"num_adapters": 1}],
    private=("layers.", ".own_"),
    alone={"norm": "layer"},
)
def hamur(model, x, s):
    instance = dense(model.hyper[1], layers(model.hyper[0], x)).reshape(model.k, model.k)
    *hidden, last = model.layers
    without = len(hidden) - len(model.adapters)
    for i, layer in enumerate(hidden):
        x = F.relu(x @ layer.weight[s] + layer.bias[s])
        if i >= without:
            a = model.adapters[i - without]
            down, up = a.down_left @ instance @ a.down_right, a.up_left @ instance @ a.up_right
            z = torch.sigmoid(x @ down + a.down_bias)
            x = x + normalised(a.norm, z @ up + a.up_bias, s)
    return x @ last.weight[s] + last.bias[s]
