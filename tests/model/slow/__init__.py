"""The formula of each backbone, one row at a time; `slow/NAME.py` belongs to `backbones/NAME.py`.

A module has
    OPTIONS   small sizes to build the backbone with
    PRIVATE   parts of the names of parameters that belong to one scenario (first dimension: S)
    slow      (model, x (in_dim,), s) -> logits (T,), written from the paper's formula, with loops
and, where there is something to say,
    VARIANTS  more options to compare with the formula
    ALONE     options under which it does not, or None if the formula always couples rows
"""

import torch
from torch.nn import functional as F


def dense(linear, x):
    """One nn.Linear."""
    return linear.weight @ x + linear.bias


def layers(modules, x):
    """The Linear layers of an MLP, with relu after each."""
    for layer in modules:
        if isinstance(layer, torch.nn.Linear):
            x = F.relu(dense(layer, x))
    return x


def tower(towers, x, s):
    """Tower s: relu after every layer but the last."""
    *hidden, last = towers.layers
    for layer in hidden:
        x = F.relu(x @ layer.weight[s] + layer.bias[s])
    return x @ last.weight[s] + last.bias[s]


def expert(experts, x, e):
    """Expert e of a stack over one input."""
    width = experts.first.out_features // experts.num_experts
    own = slice(e * width, (e + 1) * width)
    h = F.relu(experts.first.weight[own] @ x + experts.first.bias[own])
    for weight, bias in zip(experts.weights, experts.biases, strict=True):
        h = F.relu(h @ weight[e] + bias[e, 0])
    return h


def specific_expert(experts, x, s, e):
    """Expert e of scenario s."""
    for weight, bias in zip(experts.weights, experts.biases, strict=True):
        x = F.relu(x @ weight[s, e] + bias[s, e])
    return x
