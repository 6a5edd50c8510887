"""The whole model: `Ranker` gives logits (what one serves), `RankerTrain` adds the loss."""

from typing import NamedTuple

import torch
from torch import nn

from msrec.data.batch import Batch
from msrec.model.dropout import Dropout
from msrec.model.embeddings import Embeddings
from msrec.model.interaction import Interaction
from msrec.model.llm_feature import KnowledgeFeature
from msrec.model.losses import weighted_bce
from msrec.model.meta import ScenarioMeta, UserMeta


class DenseArch(nn.Module):
    """From looked-up vectors to logits: interaction, user meta layers, backbone, scenario meta.

    With an `llm_feature` the user's LLM vector stands beside the interaction's output.

    Kept apart from the embedding tables, because tables are sharded and this part is replicated.

    Shape:
        vectors: (B, F, D), float.
        dense: (B, num_dense), float.
        scenario: (B,), int64.
        weight: (B,), float; rows of weight 0 are padding.
        knowledge, user_index, has_knowledge: as in `Batch`.
        returns: (B, T), logits.
    """

    def __init__(
        self,
        interaction: Interaction,
        backbone: nn.Module,
        user_meta: UserMeta | None = None,
        scenario_meta: ScenarioMeta | None = None,
        llm_feature: KnowledgeFeature | None = None,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.interaction = interaction
        self.input_dropout = Dropout(input_dropout)
        self.backbone = backbone
        self.user_meta = user_meta
        self.scenario_meta = scenario_meta
        self.llm_feature = llm_feature

    def forward(  # noqa: D102
        self,
        vectors: torch.Tensor,
        dense: torch.Tensor,
        scenario: torch.Tensor,
        weight: torch.Tensor,
        knowledge: torch.Tensor,
        user_index: torch.Tensor,
        has_knowledge: torch.Tensor,
    ) -> torch.Tensor:
        x = self.input_dropout(self.interaction(vectors, dense))
        if self.llm_feature is not None:
            feature = self.llm_feature(knowledge, user_index, has_knowledge)
            x = torch.cat([x, feature], dim=1)
        if self.user_meta is not None:
            x = self.user_meta(x, knowledge, user_index, has_knowledge)
        logits: torch.Tensor = self.backbone(x, scenario, weight)
        if self.scenario_meta is not None:
            logits = logits + self.scenario_meta(x, scenario)
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
        vectors = self.embeddings(batch.sparse)
        logits = self.over(
            vectors,
            batch.dense,
            batch.scenario,
            batch.weight,
            batch.knowledge,
            batch.user_index,
            batch.has_knowledge,
        )
        return logits, vectors


class RankLoss(nn.Module):
    """Weighted binary cross entropy plus L2 on the looked-up vectors.

    L2 stands here because fused optimizers ignore weight decay on CPU. It acts on the rows of the
    batch only: `l2 * sum(weight * ||vectors||^2) / B`.
    """

    def __init__(self, l2: float = 0.0) -> None:
        super().__init__()
        self.l2 = l2

    def forward(  # noqa: D102
        self,
        logits: torch.Tensor,
        label: torch.Tensor,
        weight: torch.Tensor,
        vectors: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        click = weighted_bce(logits, label, weight)
        if self.l2 == 0:
            return click, click.detach()
        size = vectors.square().sum(dim=(1, 2)) @ weight / len(weight)
        return click + self.l2 * size, click.detach()


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

    The `loss` of the outcome is the cross entropy alone, without regularisation.
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
