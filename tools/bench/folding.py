"""Where to stop folding a user's knowledge: vectors, codes, or whole layers kept a user."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from msrec.model.layers.generated_linear import Codes, GeneratedLinear, make_codes
from msrec.model.meta import UserMeta

USERS = 100_000
"""Of the made-up tables, more than a cache holds."""
DRAWS = 64


def folding_cases(
    meta: UserMeta, sizes: tuple[int, ...]
) -> dict[int, dict[str, Callable[[], object]]]:
    """Ways to run the user meta layers of rows of random users, for each number of rows.

    From vectors, as a run does; from codes, as an export does; from layers made beforehand, which
    are less work and in * out / R times as much memory; and from codes where all rows are of one
    user.
    """
    torch.manual_seed(0)
    half = torch.randn(USERS, meta.reducer.linear.in_features).half()
    has = torch.ones(USERS)
    z = torch.cat([meta.reducer(part, has[: len(part)]) for part in torch.split(half, 8192)])
    made = [_made(layer, z) for layer in meta.layers if isinstance(layer, GeneratedLinear)]
    width = meta.down.in_features if isinstance(meta.down, nn.Linear) else made[0][0].shape[1]

    def ways(size: int) -> dict[str, Callable[[], object]]:
        x, one = torch.randn(size, width), torch.zeros(size, dtype=torch.int64)
        users = itertools.cycle([torch.randint(0, USERS, (size,)) for _ in range(DRAWS)])
        return {
            "vectors": lambda: _from_vectors(meta, x, half, has, next(users)),
            "codes": lambda: meta.change(x, Codes(z[next(users)], None)),
            "layers": lambda: _from_layers(meta, x, made, next(users)),
            "codes, one user": lambda: meta.change(x, make_codes(z[:1], one, "distinct")),
        }

    return {size: ways(size) for size in sizes}


def _made(layer: GeneratedLinear, z: Tensor) -> tuple[Tensor, Tensor]:
    weight = (z @ layer.weight.flatten(1)).half()
    return weight.view(-1, layer.in_dim, layer.out_dim), z @ layer.bias


def _from_vectors(meta: UserMeta, x: Tensor, half: Tensor, has: Tensor, users: Tensor) -> Tensor:
    distinct, place = torch.unique(users, return_inverse=True)
    return torch.as_tensor(meta(x, half[distinct], place, has[distinct]))


def _from_layers(
    meta: UserMeta, x: Tensor, made: list[tuple[Tensor, Tensor]], users: Tensor
) -> Tensor:
    h = meta.down(x)
    for number, (weight, bias) in enumerate(made):
        y = torch.bmm(h.unsqueeze(1), weight[users].float()).squeeze(1) + bias[users]
        h = meta.update(h, y, number)
    return meta.output(x, h)
