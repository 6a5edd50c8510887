"""Slow formulas of the backbones, one row at a time; `slow/FILE.py` belongs to `backbones/FILE.py`.

A formula is a function named after its backbone: (model, x (in_dim,), s) -> logits (T,), written
from the paper, with loops.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

FORMULAS = {}


@dataclass
class Formula:
    """A formula and what the tests need to know.

    options: small sizes to build the backbone with.
    private: parts of the names of parameters that belong to one scenario (first dimension: S).
    variants: more options to compare with the formula.
    alone: options with which rows are independent in training.
    """

    slow: Callable
    options: dict
    private: tuple = ()
    variants: list = field(default_factory=list)
    alone: dict = field(default_factory=dict)


def formula(options, **facts):
    """Registers a formula under the name of its function."""

    def register(slow):
        FORMULAS[slow.__name__] = Formula(slow, options, **facts)
        return slow

    return register


def dense(linear, x):
    """One nn.Linear."""
    return linear.weight @ x + linear.bias


def layers(modules, x):
    """The Linear layers of an MLP, with relu after each."""
    for layer in modules:
        if isinstance(layer, torch.nn.Linear):
            x = F.relu(dense(layer, x))
    return x


def own_linear(layer, x, s, t=0, num_tasks=1):
    """Layer of scenario s and task t; the tasks' columns follow each other."""
    return of_task(layer.weight[s], t, num_tasks).T @ x + of_task(layer.bias[s], t, num_tasks)


def of_task(columns, t, num_tasks):
    """The last dimension's part of task t."""
    width = columns.shape[-1] // num_tasks
    return columns[..., t * width : (t + 1) * width]


def tower(towers, x, s):
    """Towers of scenario s: relu after every layer but the last; x may be a list, one per task."""
    logits = []
    for t in range(towers.num_tasks):
        h = x[t] if isinstance(x, list) else x
        *hidden, last = towers.layers
        for layer in hidden:
            h = F.relu(own_linear(layer, h, s, t, towers.num_tasks))
        logits.append(own_linear(last, h, s, t, towers.num_tasks))
    return torch.cat(logits)


def gated(gate, outputs):
    """The sum of outputs weighted by the softmax of the gate's logits."""
    return F.softmax(gate, dim=0) @ torch.stack(outputs)


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
