"""The whole model: `Ranker` gives logits (what one serves), `RankerTrain` adds the loss."""

from typing import NamedTuple

import torch
from torch import nn

from msrec.data.loading.batch import Batch, EntityVectors
from msrec.model.embeddings import Embeddings
from msrec.model.layers.dropout import Dropout
from msrec.model.layers.interaction import Interaction
from msrec.model.llm_feature import KnowledgeFeature, KnowledgeMatch
from msrec.model.losses import weighted_bce
from msrec.model.meta import ScenarioMeta, UserMeta, fuse


class KnowledgeParts(NamedTuple):
    """The modules that bring knowledge of the LLM into a model; None where a run has none."""

    user_meta: UserMeta | None = None
    item_meta: UserMeta | None = None
    scenario_meta: ScenarioMeta | None = None
    user_feature: KnowledgeFeature | None = None
    item_feature: KnowledgeFeature | None = None
    match: KnowledgeMatch | None = None
    learned_users: nn.Embedding | None = None
    """A control: vectors that are learned stand for those of the store."""


class DenseArch(nn.Module):
    """From looked-up vectors to logits: interaction, user meta layers, backbone, scenario meta.

    LLM features stand beside the interaction's output; items may have meta layers like users.

    Kept apart from the embedding tables, because tables are sharded and this part is replicated.

    Shape:
        vectors: (B, F, D), float.
        dense: (B, num_dense), float.
        scenario: (B,), int64.
        weight: (B,), float; rows of weight 0 are padding.
        user_vectors, item_vectors: as in `Batch`.
        returns: (B, T), logits.
    """

    def __init__(
        self,
        interaction: Interaction,
        backbone: nn.Module,
        parts: KnowledgeParts | None = None,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.interaction = interaction
        self.input_dropout = Dropout(input_dropout)
        self.backbone = backbone
        parts = parts or KnowledgeParts()
        self.user_meta, self.item_meta = parts.user_meta, parts.item_meta
        self.scenario_meta = parts.scenario_meta
        self.user_feature, self.item_feature = parts.user_feature, parts.item_feature
        self.match = parts.match
        self.learned_users = parts.learned_users

    def forward(  # noqa: D102
        self,
        vectors: torch.Tensor,
        dense: torch.Tensor,
        scenario: torch.Tensor,
        weight: torch.Tensor,
        user_vectors: EntityVectors,
        item_vectors: EntityVectors,
    ) -> torch.Tensor:
        x = self.input_dropout(self.interaction(vectors, dense))
        if self.learned_users is not None:
            user_vectors = user_vectors._replace(vectors=self.learned_users(user_vectors.ids))
        user = (user_vectors.vectors, user_vectors.inverse, user_vectors.has)
        item = (item_vectors.vectors, item_vectors.inverse, item_vectors.has)
        beside = [] if self.user_feature is None else [self.user_feature(*user)]
        beside += [] if self.item_feature is None else [self.item_feature(*item)]
        beside += [] if self.match is None else [self.match(user, item)]
        x = torch.cat([x, *beside], dim=1) if beside else x
        if self.user_meta is not None:
            x = self.user_meta(x, *user)
        if self.item_meta is not None:
            x = self.item_meta(x, *item)
        logits: torch.Tensor = self.backbone(x, scenario, weight)
        if self.scenario_meta is not None:
            meta = self.scenario_meta
            logits = fuse(logits, meta(x, scenario), meta.fusion)
        return logits


class Ranker(nn.Module):
    """Embeddings and everything over them; servable.

    Shape:
        returns: logits (B, T) and the looked-up vectors (B, F, D).
    """

    def __init__(self, embeddings: Embeddings, over: DenseArch) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.over = over

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: D102
        vectors = self.embeddings(batch.sparse, batch.past)
        logits = self.over(
            vectors,
            batch.dense,
            batch.scenario,
            batch.weight,
            batch.user_vectors,
            batch.item_vectors,
        )
        return logits, vectors


class RankLoss(nn.Module):
    """Weighted binary cross entropy of the first label, of the others, and L2 on the vectors.

    The total is the first label's entropy, plus `aux_weight` times the mean over the other labels,
    plus L2; with `aux_weight` 0 the model has one logit and other labels are not looked at.

    L2 stands here because fused optimizers ignore weight decay on CPU. It acts on the rows of the
    batch only: `l2 * sum(weight * ||vectors||^2) / B`.

    Rows without labels, (B, 0), which are only to be scored, have the loss 0.
    """

    def __init__(self, l2: float = 0.0, aux_weight: float = 0.0) -> None:
        super().__init__()
        self.l2, self.aux_weight = l2, aux_weight

    def forward(  # noqa: D102
        self,
        logits: torch.Tensor,
        label: torch.Tensor,
        weight: torch.Tensor,
        vectors: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not label.shape[1]:
            nothing = logits.new_zeros(())
            return nothing, nothing
        click = weighted_bce(logits[:, :1], label[:, :1], weight)
        total = click
        if self.aux_weight > 0:
            total = total + self.aux_weight * weighted_bce(logits[:, 1:], label[:, 1:], weight)
        if self.l2 > 0:
            total = total + self.l2 * (vectors.square().sum(dim=(1, 2)) @ weight / len(weight))
        return total, click.detach()


class Outcome(NamedTuple):
    """What a step leaves for metrics and predictions, one entry a row of the batch."""

    loss: torch.Tensor
    logits: torch.Tensor
    label: torch.Tensor
    weight: torch.Tensor
    scenario: torch.Tensor
    row_id: torch.Tensor
    user: torch.Tensor


class RankerTrain(nn.Module):
    """What TorchRec's train pipeline runs: the loss to differentiate, and an `Outcome`.

    The `loss` of the outcome is the cross entropy of the first label alone.
    """

    def __init__(self, ranker: Ranker, loss: RankLoss) -> None:
        super().__init__()
        self.ranker = ranker
        self.loss = loss

    def forward(self, batch: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:  # noqa: D102
        logits, vectors = self.ranker(batch)
        total, click = self.loss(logits, batch.label, batch.weight, vectors)
        return total, (
            click,
            logits.detach(),
            batch.label,
            batch.weight,
            batch.scenario,
            batch.row_id,
            batch.user,
        )
