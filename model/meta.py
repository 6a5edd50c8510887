"""Meta networks around any backbone: user layers below it, a scenario network in parallel."""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from msrec.data.loading.row_counts import RowCounts
from msrec.model.layers.generated_linear import (
    Codes,
    FactoredLinear,
    GeneratedLinear,
    check_form,
    make_codes,
)
from msrec.model.layers.knowledge_reducer import KnowledgeReducer
from msrec.model.layers.mlp import check_positive, make_activation

Fusion = Literal["add", "gate"]


@dataclass(frozen=True)
class MetaOptions:
    """Options that `UserMeta` and `ScenarioMeta` share.

    Args:
        rank: size R of the code of a vector.
        width: size of the generated layers; None is the size of x.
        num_layers: generated layers, without the generated head of `ScenarioMeta`.
        activation: after each generated layer.
        dropout: rate on the codes.
        form: of `make_codes`; "factored" makes layers of another class, `FactoredLinear`.
        standardize: whether vectors are standardised before they are reduced.

    Raises:
        ValueError: a size is below 1, or the form is unknown.
    """

    rank: int = 16
    width: int | None = 32
    num_layers: int = 1
    activation: str = "silu"
    dropout: float = 0.0
    form: str = "auto"
    standardize: bool = True

    def __post_init__(self) -> None:
        width = 1 if self.width is None else self.width
        check_positive(rank=self.rank, width=width, num_layers=self.num_layers)
        check_form(self.form)

    def layer(
        self, in_dim: int, out_dim: int, zero: bool = False
    ) -> GeneratedLinear | FactoredLinear:
        """Returns a generated layer."""
        kind = FactoredLinear if self.form == "factored" else GeneratedLinear
        return kind(in_dim, out_dim, self.rank, zero)

    def reducer(self, mean: Tensor, std: Tensor, flag: bool = False) -> KnowledgeReducer:
        """Returns the reducer of vectors with these moments."""
        return KnowledgeReducer(mean, std, self.rank, self.dropout, self.standardize, flag)


class UserMeta(nn.Module):
    """Layers generated per user, between the interaction and the backbone.

    With a width: h = down(x), then `num_layers` times h <- h + act(W(z) h + b(z)), and the output
    is x + up(h). With width None: y <- y + s * act(W(z) y + b(z)) on all of x, with a learned scale
    s per layer and column. `up` and s start at 0, so that step 0 is the bare backbone.

    Without `residual`: h <- act(W(z) h + b(z)) and up(h), or y <- act(W(z) y + b(z)) on all of x.
    The backbone then sees x through the generated layers alone.

    Shape:
        x: (B, in_dim), float.
        knowledge: (U, knowledge_dim), float, raw vectors of the batch's users.
        user_index: (B,), int64 in [0, U).
        has_knowledge: (U,), float, 0 where the store has no vector.
        counts: (U,), int64, rows of each user, on the host; see `group_rows`.
        returns: (B, in_dim), float.

    Raises:
        ValueError: mean or std is not valid, see `mean_and_scale`.

    Source:
        LLM4MSR (arXiv 2406.12529) puts user-level meta layers at the bottom of the backbone and
        leaves their size and form open. The residual is M2M's (arXiv 2201.06814); the narrow
        `width` is HAMUR's adapter (arXiv 2309.06217): a full in_dim x in_dim matrix per user costs
        (in_dim / width)^2 as much.

    Example:
        >>> meta = UserMeta(8, torch.zeros(6), torch.ones(6), MetaOptions(width=4))
        >>> x, index = torch.ones(3, 8), torch.tensor([0, 1, 1])
        >>> bool((meta(x, torch.rand(2, 6), index, torch.ones(2)) == x).all())  # at step 0
        True
    """

    def __init__(
        self,
        in_dim: int,
        mean: Tensor,
        std: Tensor,
        options: MetaOptions,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.form, self.residual = options.form, residual
        self.reducer = options.reducer(mean, std, flag=True)
        size = options.width or in_dim
        self.layers = nn.ModuleList(options.layer(size, size) for _ in range(options.num_layers))
        self.activation = make_activation(options.activation)
        self.scales: nn.ParameterList | None = None
        self.down: nn.Module = nn.Identity()
        self.up: nn.Module = nn.Identity()
        if options.width is not None:
            self.down, self.up = nn.Linear(in_dim, size), nn.Linear(size, in_dim)
            if residual:
                nn.init.zeros_(self.up.weight)
                nn.init.zeros_(self.up.bias)
        elif residual:
            self.scales = nn.ParameterList(torch.zeros(in_dim) for _ in self.layers)

    def forward(
        self,
        x: Tensor,
        knowledge: Tensor,
        user_index: Tensor,
        has_knowledge: Tensor,
        counts: RowCounts | None = None,
    ) -> Tensor:
        """Changes each row by the knowledge of its user."""
        z = self.reducer(knowledge, has_knowledge)
        return self.change(x, make_codes(z, user_index, self.form, counts))

    def change(self, x: Tensor, codes: Codes) -> Tensor:
        """Changes each row by the code of its user."""
        h = codes.sort(self.down(x))
        for number, layer in enumerate(self.layers):
            h = self.update(h, layer(h, codes), number)
        return self.output(x, codes.unsort(h))

    def update(self, h: Tensor, generated: Tensor, number: int) -> Tensor:
        """Returns the next h, from h and the output of generated layer `number`."""
        change: Tensor = self.activation(generated)
        if not self.residual:
            return change
        return h + (change if self.scales is None else self.scales[number] * change)

    def output(self, x: Tensor, h: Tensor) -> Tensor:
        """Returns the input of the backbone, from x and the last h."""
        made: Tensor = self.up(h)
        return x + made if self.residual and self.scales is None else made


def fuse(logits: Tensor, change: Tensor, fusion: Fusion) -> Tensor:
    """Joins the logits of a backbone and those of `ScenarioMeta`, both (B, num_tasks).

    add: logits + change. gate: logits * 2 sigmoid(change). Both keep the logits at change 0.
    """
    return logits + change if fusion == "add" else logits * (2 * torch.sigmoid(change))


class ScenarioMeta(nn.Module):
    """Network generated per scenario, in parallel with the backbone, which changes its logits.

    It has `num_layers` hidden layers act(W(z_s) h + b(z_s)) and a generated linear layer to the
    logits, which starts at 0, so that step 0 is the bare backbone. `fuse` joins them by `fusion`.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, S), where S is the number of rows of `knowledge`.
        counts: (S,), int64, rows of each scenario, on the host; see `group_rows`.
        returns: (B, num_tasks), float, for `fuse`.

    Raises:
        ValueError: knowledge is not (S, H) or is not finite.

    Source:
        LLM4MSR puts scenario-level meta layers in parallel with the backbone and leaves the fusion
        open; adding logits is how STAR joins its auxiliary network, a gate of up to 2 how PEPNet
        uses its scenario embedding. The vectors are standardised over the scenarios and kept as a
        buffer, so that a saved model needs no store for them.

    Example:
        >>> meta = ScenarioMeta(8, torch.rand(3, 6), num_tasks=1, options=MetaOptions(width=4))
        >>> meta(torch.ones(2, 8), torch.tensor([2, 0])).tolist()  # at step 0
        [[0.0], [0.0]]
    """

    def __init__(
        self,
        in_dim: int,
        knowledge: Tensor,
        num_tasks: int,
        options: MetaOptions,
        fusion: Fusion = "add",
    ) -> None:
        super().__init__()
        if knowledge.dim() != 2 or not len(knowledge):
            raise ValueError(f"scenario knowledge must be (S, H); got {tuple(knowledge.shape)}.")
        knowledge = knowledge.float()
        self.form, self.fusion = options.form, fusion
        self.register_buffer("knowledge", knowledge)
        std, mean = torch.std_mean(knowledge, dim=0, correction=0)
        self.reducer = options.reducer(mean, std)
        sizes = [in_dim, *[options.width or in_dim] * options.num_layers]
        self.layers = nn.ModuleList(options.layer(a, b) for a, b in itertools.pairwise(sizes))
        self.head = options.layer(sizes[-1], num_tasks, zero=True)
        self.activation = make_activation(options.activation)

    def forward(self, x: Tensor, scenario: Tensor, counts: RowCounts | None = None) -> Tensor:
        """Returns the change of the logits of each row by its scenario."""
        z = self.reducer(self.get_buffer("knowledge"))
        codes = make_codes(z, scenario, self.form, counts)
        h = codes.sort(x)
        for layer in self.layers:
            h = self.activation(layer(h, codes))
        return codes.unsort(self.head(h, codes))
