"""Serving form of a model: all that depends on one user, item or scenario is computed in advance.

The code that generates a user's meta layers and the user's LLM columns depend on the user alone, so
an export computes them once and keeps them as one row per user of a table; likewise for items. The
generated layers of each scenario are kept too.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msrec.data.loading.behaviour_history import Side
from msrec.model.interest.histories import Histories
from msrec.model.layers.generated_linear import Codes
from msrec.model.layers.row_groups import group_rows
from msrec.model.meta import ScenarioMeta, fuse
from msrec.model.ranker import DenseArch
from msrec.model.score_head import ScoreHead

MAX_LAYERS = 64
"""Most scenarios whose generated layers are kept. Grouped products take about 1 us per group."""


class KnowledgeWidths(NamedTuple):
    """Columns of a user's (item's) precomputed row: code, LLM feature columns, match factors."""

    code: int = 0
    columns: int = 0
    match: int = 0

    @property
    def total(self) -> int:
        """Columns of the whole row."""
        return sum(self)


def knowledge_widths(dense_arch: DenseArch, side: Side) -> KnowledgeWidths:
    """Returns the widths of the precomputed rows of users or items; all 0 if none are read."""
    meta, feature = getattr(dense_arch, f"{side}_meta"), getattr(dense_arch, f"{side}_feature")
    return KnowledgeWidths(
        0 if meta is None else meta.reducer.linear.out_features,
        0 if feature is None else feature.out_dim,
        0 if dense_arch.match is None else dense_arch.match.out_dim,
    )


def knowledge_rows(dense_arch: DenseArch, side: Side, vectors: Tensor, has: Tensor) -> Tensor:
    """Computes the rows of some users (items) from their LLM vectors.

    Shape:
        vectors: (U, knowledge_dim), float.
        has: (U,), float, 0 where the store has no vector.
        returns: (U, W), float32, where W is `knowledge_widths(dense_arch, side).total`.
    """
    meta, feature = getattr(dense_arch, f"{side}_meta"), getattr(dense_arch, f"{side}_feature")
    parts = [vectors.new_zeros(len(vectors), 0, dtype=torch.float32)]
    if meta is not None:
        parts.append(meta.reducer(vectors, has)[:, 1:])  # column 0 is 1
    if feature is not None:
        parts.append(feature.columns(vectors, has))
    if dense_arch.match is not None:
        match = dense_arch.match
        factors = match.user_factors if side == "user" else match.item_factors
        parts.append(factors(vectors, has))
    return torch.cat(parts, dim=1)


class ServingScenarioMeta(nn.Module):
    """`ScenarioMeta` with precomputed layers or codes of the scenarios.

    With up to `MAX_LAYERS` scenarios it keeps the layers of each. With more it keeps the codes, and
    a row takes (R + 1) * in * out products.

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
        self.has_layers = len(z) <= MAX_LAYERS
        if self.has_layers:
            weights, biases = zip(*(layer.generate(z) for layer in layers), strict=True)
            self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)
            layers = []
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Returns the change of the logits of each row by its scenario."""
        z = self.get_buffer("z")
        if not self.has_layers:
            codes = Codes(z.index_select(0, scenario), None)
            *hidden, head = self.layers
            for layer in hidden:
                x = self.activation(layer(x, codes))
            x = head(x, codes)
            return x
        groups = group_rows(scenario, len(z))
        x = groups.sort(x)
        last = len(self.weights) - 1
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = groups.linear(x, weight, bias)
            x = x if number == last else self.activation(x)
        return groups.unsort(x)


class ServingModel(nn.Module):
    """From rows of tables to the scores of `ScoreHead`.

    Shape:
        pooled: (B, (F + H) D + W_user + W_item), float: sums of the vectors of each feature, the
            vectors of histories, and the precomputed rows of user and item.
        lengths: (B, F), float, number of ids of each feature.
        dense: (B, num_dense), float.
        scenario: (B,), int64 in [0, S).
        sequence: candidate, bag, events, scenario and label of `Histories`, then the vectors of
            each source as in `Interest`, then those of `SequenceEncoder`; empty for a model that
            reads no ordered histories.
        returns: (B, C), float, scores of the labels, and the combined score if there is one.

    Raises:
        ValueError: the model has learned vectors in place of the LLM's.
    """

    def __init__(
        self,
        dense_arch: DenseArch,
        head: ScoreHead,
        num_features: int,
        num_histories: int,
        dim: int,
    ) -> None:
        super().__init__()
        self.head = head
        if dense_arch.learned_users is not None:
            raise ValueError(
                "llm.control must not be learned for a model to be served: its vectors are of the "
                "users of one data set."
            )
        self.interaction, self.backbone = dense_arch.interaction, dense_arch.backbone
        self.user_meta, self.item_meta = dense_arch.user_meta, dense_arch.item_meta
        self.scenario_meta = None
        if dense_arch.scenario_meta is not None:
            self.scenario_meta = ServingScenarioMeta(dense_arch.scenario_meta)
        self.interest, self.sequence_encoder = dense_arch.interest, dense_arch.sequence_encoder
        self.num_features, self.dim = num_features, dim
        self.num_vectors = num_features + num_histories
        self.user, self.item = (knowledge_widths(dense_arch, side) for side in ("user", "item"))

    @property
    def reads_sequences(self) -> bool:
        """Whether the model reads ordered histories."""
        return self.interest is not None or self.sequence_encoder is not None

    def forward(
        self,
        pooled: Tensor,
        lengths: Tensor,
        dense: Tensor,
        scenario: Tensor,
        sequence: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """Returns the scores of each row."""
        sizes = [self.num_vectors * self.dim, *self.user, *self.item]
        flat, user_code, user_columns, user_match, item_code, item_columns, item_match = (
            torch.split(pooled, sizes, dim=1)
        )
        vectors = torch.unflatten(flat, 1, (self.num_vectors, self.dim))
        features = vectors[:, : self.num_features] / lengths.clamp(min=1).unsqueeze(2)
        vectors = torch.cat([features, vectors[:, self.num_features :]], dim=1)
        columns = [self.interaction(vectors, dense), user_columns, item_columns]
        columns.append(user_match * item_match)
        interest_logits = None
        if self.reads_sequences:
            candidate, bag, events, of_scenario, label, *items = sequence
            histories = Histories(candidate, events, of_scenario, label, bag)
            learned = None if self.sequence_encoder is None else items.pop()
            if self.interest is not None:
                matched, interest_logits = self.interest(items, histories, scenario)
                columns.append(matched)
            if self.sequence_encoder is not None:
                columns.append(self.sequence_encoder(learned, histories, scenario))
        x = torch.cat(columns, dim=1)
        if self.user_meta is not None:
            x = self.user_meta.change(x, _codes(user_code))
        if self.item_meta is not None:
            x = self.item_meta.change(x, _codes(item_code))
        logits = self.backbone(x, scenario)
        if self.scenario_meta is not None:
            change = self.scenario_meta(x, scenario)
            logits = fuse(logits, change, self.scenario_meta.fusion)
        if interest_logits is not None:
            logits = logits + interest_logits
        scores: Tensor = self.head(logits, scenario)
        return scores


def _codes(z: Tensor) -> Codes:
    return Codes(torch.cat([torch.ones_like(z[:, :1]), z], dim=1), None)
