"""ESMM backbone."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.layers.mlp import RELU, Hidden
from msrec.model.layers.row_groups import group_rows
from msrec.model.layers.scenario_layers import Towers


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

    def forward(self, x: Tensor, scenario: Tensor, weight: Tensor | None = None) -> Tensor:
        """Returns logits (B, num_tasks) of rows x (B, in_dim)."""
        groups = group_rows(scenario, self.num_scenarios)
        return groups.unsort(self.towers(groups.sort(x), groups))
