"""MLPs: one for all, one per scenario and label (also as ESMM), a shared bottom with towers."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from msrec.data.loading.row_counts import RowCounts
from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers import mlp
from msrec.model.layers.mlp import RELU, Hidden
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import Towers


class MLP(Backbone):
    """Plain MLP without scenarios, the baseline that every other model must beat.

    logit_t = head_t(MLP(x)), with a linear head per label.

    When:
        As the floor: a multi-scenario model that does not beat it is not worth its price. It is
        enough where a feature in x already identifies the scenario.

    Source:
        No paper; the deep part of Cheng et al., DLRS 2016 (Wide & Deep), alone.

    Example:
        >>> import torch
        >>> model = MLP(BackboneShape(in_dim=8, num_scenarios=3), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        dims: Sequence[int] = (256, 128),
        hidden: Hidden = RELU,
        norm: Literal["none", "layer"] = "none",
    ) -> None:
        super().__init__(shape)
        self.mlp = mlp.MLP(shape.in_dim, dims, hidden, norm)
        self.head = nn.Linear(self.mlp.out_dim, shape.num_tasks)

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        logits: Tensor = self.mlp(x, self.head)
        return logits


class Separate(Backbone):
    """Separate MLP for each scenario and label, with nothing in common.

    logit_st = MLP_st(x). The tables and the bottom MLP of the dense features stay shared, unless
    the run sets `embeddings.per_scenario: true` and `interaction.bottom_dims: []`. Then it trains S
    independent models, each on its own rows, which only stop together. Labels always share the
    tables.

    When:
        As the reference that shows what sharing is worth. It is right where scenarios have many
        rows each and little in common.

    Source:
        No paper; the reference that every multi-scenario paper calls "single" or "separate".

    Example:
        >>> import torch
        >>> model = Separate(BackboneShape(in_dim=8, num_scenarios=3), dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self, shape: BackboneShape, *, dims: Sequence[int] = (256, 128), hidden: Hidden = RELU
    ) -> None:
        super().__init__(shape)
        self.towers = Towers(shape.in_dim, dims, shape.num_scenarios, shape.num_tasks, hidden)

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios, counts)
        return groups.unsort(self.towers(groups.sort(x), groups))


class SharedBottom(Backbone):
    """MLP shared by all scenarios and labels, with one tower per scenario and label.

    logit_st = tower_st(bottom(x)).

    When:
        As the first model to try: the cheapest, and hard to beat where scenarios are alike.

    Source:
        Caruana 1997, in the form of Scenario-Wise-Rec; no batch norm (see the layer `MLP`).

    Example:
        >>> import torch
        >>> model = SharedBottom(BackboneShape(in_dim=8, num_scenarios=3), bottom_dims=[4])
        >>> model(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        shape: BackboneShape,
        *,
        bottom_dims: Sequence[int] = (256, 128),
        tower_dims: Sequence[int] = (64,),
        hidden: Hidden = RELU,
        norm: Literal["none", "layer"] = "none",
    ) -> None:
        super().__init__(shape)
        self.bottom = mlp.MLP(shape.in_dim, bottom_dims, hidden, norm)
        size = self.bottom.out_dim
        self.towers = Towers(size, tower_dims, shape.num_scenarios, shape.num_tasks, hidden)

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios, counts)
        return groups.unsort(self.towers(groups.sort(self.bottom(x)), groups))


class ESMM(Backbone):
    """Entire space multi-task model: a label after a click is learned from all rows, by a product.

    logit_st = MLP_st(x); the labels share the embeddings only. A label with `exists_where`, such as
    conversion after click, has the conditional probability sigmoid(logit). Its loss is the cross
    entropy of P(parent) * P(label | parent) over all rows, also those without a click.

    Raises:
        ValueError: no label exists only where another is 1.

    When:
        Conversion after click, where clicks are rare: trained on clicked rows alone, the conversion
        would be learned from few rows and used on others.

    Source:
        Ma et al., SIGIR 2018 (arXiv 1804.07931). One MLP per scenario and label, where the paper
        has one per label.

    Example:
        >>> import torch
        >>> shape = BackboneShape(in_dim=8, num_scenarios=3, num_tasks=2, parents=(None, 0))
        >>> ESMM(shape, dims=[4])(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 2])
    """

    entire_space: ClassVar[bool] = True

    def __init__(
        self, shape: BackboneShape, *, dims: Sequence[int] = (256, 128), hidden: Hidden = RELU
    ) -> None:
        super().__init__(shape)
        if not any(parent is not None for parent in shape.parents):
            raise ValueError(
                "ESMM needs a label that exists only where another is 1, such as conversion after "
                f"click; none of the {shape.num_tasks} trained labels does. Set label_options."
                "NAME.exists_where in dataset.yaml and train both by objective.labels, or choose "
                "another model."
            )
        self.towers = Towers(shape.in_dim, dims, shape.num_scenarios, shape.num_tasks, hidden)

    def forward(
        self,
        x: Tensor,
        scenario: Tensor,
        weight: Tensor | None = None,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios, counts)
        return groups.unsort(self.towers(groups.sort(x), groups))
