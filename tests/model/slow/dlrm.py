import torch
from zoo import LAYOUT

from slow import dense, layers

OPTIONS = {"dims": [8, 5]}
PRIVATE = ()


def slow(model, x, s):
    """The tests' x: a bottom output of size D, F vectors, and one column more."""
    dim = LAYOUT.dim
    vectors = [x[i * dim : (i + 1) * dim] for i in range(len(LAYOUT.names) + 1)]
    dots = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
    top = torch.cat([vectors[0], torch.stack(dots), x[(len(LAYOUT.names) + 1) * dim :]])
    return dense(model.head, layers(model.mlp, top))
