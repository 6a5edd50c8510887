"""The part of a model over its tables, as it is served: knowledge is a row of a table by then.

What a model reads of a user's LLM vector depends on the user alone: the code that generates layers
and the columns beside x. Both are computed once, when a model is exported, and kept as one row a
user. So are the layers of each scenario.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msrec.data.loading.behaviour_history import Side
from msrec.model.layers.generated_linear import Codes
from msrec.model.layers.row_groups import group_rows
from msrec.model.meta import ScenarioMeta, fuse
from msrec.model.ranker import DenseArch


class Widths(NamedTuple):
    """Columns of a user's (item's) folded row: code, columns beside x, factors of the match."""

    code: int = 0
    columns: int = 0
    match: int = 0

    @property
    def total(self) -> int:
        """Of all three."""
        return sum(self)


def widths(over: DenseArch, side: Side) -> Widths:
    """What a model reads of users or of items."""
    meta, feature = getattr(over, f"{side}_meta"), getattr(over, f"{side}_feature")
    return Widths(
        0 if meta is None else meta.reducer.linear.out_features,
        0 if feature is None else feature.out_dim,
        0 if over.match is None else over.match.out_dim,
    )


def folded_rows(over: DenseArch, side: Side, vectors: Tensor, has: Tensor) -> Tensor:
    """What a model reads of some users (items), a row each.

    Shape:
        vectors: (U, H), float; has: (U,), float, 0 where the store has no vector.
        returns: (U, W), float32, W being `widths(over, side).total`.
    """
    meta, feature = getattr(over, f"{side}_meta"), getattr(over, f"{side}_feature")
    parts = [vectors.new_zeros(len(vectors), 0, dtype=torch.float32)]
    if meta is not None:
        parts.append(meta.reducer(vectors, has)[:, 1:])  # column 0 is 1
    if feature is not None:
        parts.append(feature.columns(vectors, has))
    if over.match is not None:
        factors = over.match.user_side if side == "user" else over.match.item_side
        parts.append(factors(vectors, has))
    return torch.cat(parts, dim=1)


class FoldedScenario(nn.Module):
    """`ScenarioMeta` with what its vectors generate made beforehand.

    With up to R + 1 scenarios each one's layers, of which all are run and the row's own is picked:
    S * in * out products a row. With more the codes alone: (R + 1) * in * out.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64.
        returns: (B, num_tasks), float.
    """

    def __init__(self, meta: ScenarioMeta) -> None:
        super().__init__()
        layers: list[Any] = [*meta.layers, meta.head]
        z = meta.reducer(meta.get_buffer("knowledge")).detach()
        self.activation, self.fusion = meta.activation, meta.fusion
        self.register_buffer("z", z)
        self.is_made = z.shape[0] <= z.shape[1]
        if self.is_made:
            self.weights = nn.ParameterList(
                (z @ layer.weight.flatten(1)).view(-1, layer.in_dim, layer.out_dim)
                for layer in layers
            )
            self.biases = nn.ParameterList(z @ layer.bias for layer in layers)
            layers = []
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Logits that each row's scenario adds."""
        if not self.is_made:
            codes = Codes(self.get_buffer("z").index_select(0, scenario), None)
            for number, layer in enumerate(self.layers):
                x = layer(x, codes)
                x = x if number == len(self.layers) - 1 else self.activation(x)
            return x
        groups = group_rows(scenario, len(self.get_buffer("z")))
        x = groups.sort(x)
        last = len(self.weights) - 1
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = groups.linear(x, weight, bias)
            x = x if number == last else self.activation(x)
        return groups.unsort(x)


class ServingModel(nn.Module):
    """From rows of tables to click probabilities.

    Shape:
        pooled: (B, (F + H) D + W_user + W_item), float: sums of the vectors of each feature, the
            histories as they are read, and the folded rows of the user and the item.
        lengths: (B, F), float, ids of each feature.
        dense: (B, num_dense), float.
        scenario: (B,), int64 in [0, S).
        returns: (B,), float, of the first label.
    """

    def __init__(self, over: DenseArch, num_features: int, num_histories: int, dim: int) -> None:
        super().__init__()
        if over.learned_users is not None:
            raise ValueError(
                "llm.control must not be learned for a model to be served: its vectors are of the "
                "users of one data set."
            )
        self.interaction, self.backbone = over.interaction, over.backbone
        self.user_meta, self.item_meta = over.user_meta, over.item_meta
        self.scenario_meta = None
        if over.scenario_meta is not None:
            self.scenario_meta = FoldedScenario(over.scenario_meta)
        self.num_features, self.dim = num_features, dim
        self.num_vectors = num_features + num_histories
        self.user, self.item = widths(over, "user"), widths(over, "item")

    def forward(self, pooled: Tensor, lengths: Tensor, dense: Tensor, scenario: Tensor) -> Tensor:
        """Probabilities of a click."""
        sizes = [self.num_vectors * self.dim, *self.user, *self.item]
        flat, *parts = torch.split(pooled, sizes, dim=1)
        user, item = Widths(*range(3)), Widths(*range(3, 6))  # where they stand among the parts
        vectors = torch.unflatten(flat, 1, (self.num_vectors, self.dim))
        features = vectors[:, : self.num_features] / lengths.clamp(min=1).unsqueeze(2)
        vectors = torch.cat([features, vectors[:, self.num_features :]], dim=1)
        beside = [parts[user.columns], parts[item.columns], parts[user.match] * parts[item.match]]
        x = torch.cat([self.interaction(vectors, dense), *beside], dim=1)
        if self.user_meta is not None:
            x = self.user_meta.change(x, _codes(parts[user.code]))
        if self.item_meta is not None:
            x = self.item_meta.change(x, _codes(parts[item.code]))
        logits = self.backbone(x, scenario)
        if self.scenario_meta is not None:
            change = self.scenario_meta(x, scenario)
            logits = fuse(logits, change, self.scenario_meta.fusion)
        return torch.sigmoid(logits[:, 0])


def _codes(z: Tensor) -> Codes:
    return Codes(torch.cat([torch.ones_like(z[:, :1]), z], dim=1), None)
