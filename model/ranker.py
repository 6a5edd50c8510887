"""Whole model: `Ranker` computes outputs, `RankerTrain` adds the loss."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from msrec.data.io.validation import Precision
from msrec.data.llm.knowledge import EntityKnowledge
from msrec.data.loading.batch import Batch, EntityVectors
from msrec.data.loading.behaviour_history import Side
from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone
from msrec.model.embeddings import Embeddings
from msrec.model.frozen_items import FrozenItems
from msrec.model.interest.histories import Histories
from msrec.model.interest.interest import Interest
from msrec.model.layers.dropout import Dropout
from msrec.model.layers.interaction import Interaction
from msrec.model.layers.precision import bfloat16_products, widened
from msrec.model.llm_feature import KnowledgeFeature, KnowledgeMatch
from msrec.model.losses import RankLoss
from msrec.model.meta import ScenarioMeta, UserMeta, fuse
from msrec.model.sequence_encoder import SequenceEncoder
from msrec.model.sequence_items import SequenceItems


class KnowledgeParts(NamedTuple):
    """Modules that read LLM vectors; None for those that a run does not use."""

    user_meta: UserMeta | None = None
    item_meta: UserMeta | None = None
    scenario_meta: ScenarioMeta | None = None
    user_feature: KnowledgeFeature | None = None
    item_feature: KnowledgeFeature | None = None
    match: KnowledgeMatch | None = None
    learned_users: nn.Embedding | None = None
    """Control experiment: learned vectors that replace those of the store."""
    interest: Interest | None = None


class ItemInputs(NamedTuple):
    """Histories of a batch and the vectors of its items, see `Interest` and `SequenceEncoder`."""

    histories: Histories
    frozen: Sequence[torch.Tensor] = ()
    """Per source (M + 1, dim); empty without interest blocks."""
    learned: torch.Tensor | None = None
    """(M + 1, D); None without a sequence encoder."""


class DenseArch(nn.Module):
    """From embeddings to logits: interaction, LLM features, meta layers, backbone, scenario meta.

    Separate from the embedding tables, because tables are sharded and this part is replicated.

    Shape:
        vectors: (B, F, D), float.
        dense: (B, num_dense), float.
        scenario: (B,), int64.
        weight: (B,), float; rows of weight 0 are padding.
        user_vectors, item_vectors, scenario_counts: as in `Batch`.
        returns: (B, T), float32, outputs: logits, or standardised values of regression labels.

    Args:
        precision: "bf16" computes matrix products in bfloat16 while training, with gradients and
            sensitive sums (norms, softmax, standardised vectors) in float32. In eval mode all is
            float32, so that scores are exact and have no ties from rounding.

    Attributes:
        knowledge: vectors of users and items that the model looks up, by side; the batch brings
            those of the others. They are not parameters: a checkpoint does not have them.
    """

    def __init__(
        self,
        interaction: Interaction,
        backbone: Backbone,
        parts: KnowledgeParts | None = None,
        input_dropout: float = 0.0,
        sequence_encoder: SequenceEncoder | None = None,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.precision = precision
        self.interaction = interaction
        self.input_dropout = Dropout(input_dropout)
        self.backbone = backbone
        parts = parts or KnowledgeParts()
        self.user_meta, self.item_meta = parts.user_meta, parts.item_meta
        self.scenario_meta = parts.scenario_meta
        self.user_feature, self.item_feature = parts.user_feature, parts.item_feature
        self.match = parts.match
        self.learned_users = parts.learned_users
        self.interest = parts.interest
        self.sequence_encoder = sequence_encoder
        self.knowledge: dict[Side, EntityKnowledge] = {}

    def forward(  # noqa: D102
        self,
        vectors: torch.Tensor,
        dense: torch.Tensor,
        scenario: torch.Tensor,
        weight: torch.Tensor,
        user_vectors: EntityVectors,
        item_vectors: EntityVectors,
        items: ItemInputs | None = None,
        scenario_counts: RowCounts | None = None,
    ) -> torch.Tensor:
        is_bfloat16 = self.training and self.precision == "bf16"
        with bfloat16_products(vectors.device.type, is_bfloat16):
            outputs = self._outputs(
                vectors, dense, scenario, weight, user_vectors, item_vectors, items, scenario_counts
            )
        return widened(outputs)

    def _outputs(
        self,
        vectors: torch.Tensor,
        dense: torch.Tensor,
        scenario: torch.Tensor,
        weight: torch.Tensor,
        user_vectors: EntityVectors,
        item_vectors: EntityVectors,
        items: ItemInputs | None,
        scenario_counts: RowCounts | None,
    ) -> torch.Tensor:
        user_vectors = self._looked_up("user", user_vectors)
        item_vectors = self._looked_up("item", item_vectors)
        if self.learned_users is not None:
            user_vectors = user_vectors._replace(vectors=self.learned_users(user_vectors.ids))
        user = (user_vectors.vectors, user_vectors.inverse, user_vectors.has)
        item = (item_vectors.vectors, item_vectors.inverse, item_vectors.has)
        columns = [self.input_dropout(self.interaction(vectors, dense))]
        if self.user_feature is not None:
            columns.append(self.user_feature(*user))
        if self.item_feature is not None:
            columns.append(self.item_feature(*item))
        if self.match is not None:
            columns.append(self.match(user, item))
        interest_logits = None
        if self.interest is not None:
            assert items is not None
            matched, interest_logits = self.interest(
                items.frozen, items.histories, scenario, weight
            )
            columns.append(matched)
        if self.sequence_encoder is not None:
            assert items is not None
            columns.append(self.sequence_encoder(items.learned, items.histories, scenario))
        x = torch.cat(columns, dim=1) if len(columns) > 1 else columns[0]
        if self.user_meta is not None:
            x = self.user_meta(x, *user, user_vectors.counts)
        if self.item_meta is not None:
            x = self.item_meta(x, *item, item_vectors.counts)
        logits: torch.Tensor = self.backbone(x, scenario, weight, scenario_counts)
        if self.scenario_meta is not None:
            change = self.scenario_meta(x, scenario, scenario_counts)
            logits = fuse(logits, change, self.scenario_meta.fusion)
        return logits if interest_logits is None else logits + interest_logits

    def _looked_up(self, side: Side, entities: EntityVectors) -> EntityVectors:
        if side not in self.knowledge or entities.vectors.shape[1]:
            return entities
        vectors, has = self.knowledge[side].gather(entities.ids)
        return entities._replace(vectors=vectors, has=has)


class Ranker(nn.Module):
    """Embeddings, item vectors (frozen and learned), and the dense part over them.

    Shape:
        returns: outputs (B, T) and the embeddings (B, F, D).
    """

    def __init__(
        self,
        embeddings: Embeddings,
        dense_arch: DenseArch,
        items: FrozenItems | None = None,
        sequence_items: SequenceItems | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.items = items
        self.sequence_items = sequence_items
        self.over = dense_arch  # its name in checkpoints

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: D102
        vectors = self.embeddings(batch.sparse, batch.past, batch.managed)
        events = batch.sequence
        items = None
        if self.items is not None or self.sequence_items is not None:
            items = ItemInputs(
                Histories.of_batch(events),
                () if self.items is None else self.items(events.items),
                None if self.sequence_items is None else self.sequence_items(events.items),
            )
        others = (batch.user_vectors, batch.item_vectors, items, batch.scenario_counts)
        logits = self.over(vectors, batch.dense, batch.scenario, batch.weight, *others)
        return logits, vectors


class Outcome(NamedTuple):
    """Result of a step for metrics and predictions: the labels' losses (T,), and values per row."""

    losses: torch.Tensor
    outputs: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor
    label_weight: torch.Tensor
    scenario: torch.Tensor
    row_id: torch.Tensor
    user: torch.Tensor


class RankerTrain(nn.Module):
    """Module for TorchRec's train pipeline: returns the total loss and an `Outcome`'s fields."""

    def __init__(self, ranker: Ranker, loss: RankLoss) -> None:
        super().__init__()
        self.ranker = ranker
        self.loss = loss

    def forward(self, batch: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:  # noqa: D102
        outputs, vectors = self.ranker(batch)
        weights = (batch.weight, batch.label_weight)
        total, losses = self.loss(outputs, batch.label, *weights, vectors)
        penalty = self.ranker.over.backbone.penalty(outputs, batch.weight)
        if penalty is not None:
            total = total + penalty
        rows = (batch.label, *weights, batch.scenario, batch.row_id, batch.user)
        return total, (losses, outputs.detach(), *rows)
