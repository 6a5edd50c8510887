"""Meta networks around any backbone: user layers at its bottom, scenario layers in parallel."""

from typing import Literal

import torch
from torch import Tensor, nn

from msrec.model.layers.dropout import Dropout
from msrec.model.layers.generated_linear import Codes, GeneratedLinear, check_form, make_codes
from msrec.model.layers.mlp import check_positive, make_activation

Fusion = Literal["add", "gate"]


class KnowledgeReducer(nn.Module):
    """Frozen LLM vectors to short codes: z = [1, dropout(tanh(A (h - mean) / std + a))].

    A vector that is missing counts as the mean (standardised: zeros), plus a learned flag vector
    inside tanh. A dimension with std 0 says nothing and is left out. Not `standardize`: h as it is.

    Shape:
        knowledge: (U, knowledge_dim), float.
        has_knowledge: (U,), float, 0 or 1; needed if and only if `flag`.
        returns: (U, rank + 1), float; column 0 is 1.

    Raises:
        ValueError: mean or std has another shape, is not finite or is negative; knowledge has
            another width than the model was built with.

    Source:
        LLM4MSR leaves the reduction open. Hidden states have a few dimensions hundreds of times
        larger than the rest, so they are standardised first, with fixed statistics of the store (a
        row must not depend on its batch). tanh and not LayerNorm: it bounds what an unusual user
        can do to the weights as well, and keeps z = 0, "nothing known", possible.
    """

    def __init__(
        self,
        rank: int,
        mean: Tensor,
        std: Tensor,
        dropout: float = 0.0,
        flag: bool = False,
        standardize: bool = True,
    ) -> None:
        super().__init__()
        check_positive(rank=rank)
        mean, scale = standardisation(mean, std)
        if not standardize:
            mean, scale = torch.zeros_like(mean), torch.ones_like(scale)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.linear = nn.Linear(len(mean), rank)
        self.flag = nn.Parameter(torch.zeros(rank)) if flag else None
        self.dropout = Dropout(dropout)

    def forward(self, knowledge: Tensor, has_knowledge: Tensor | None = None) -> Tensor:
        """Codes of the keys."""
        dim = self.linear.in_features
        if knowledge.dim() != 2 or knowledge.shape[1] != dim:
            raise ValueError(
                f"knowledge must be (U, {dim}) as when the model was built; got "
                f"{tuple(knowledge.shape)}. Give the store that the run was trained with."
            )
        # Standardising the weights costs R * H, standardising the vectors U * H.
        weight = self.linear.weight * self.get_buffer("scale")
        z = torch.addmm(-(weight @ self.get_buffer("mean")), knowledge.to(weight.dtype), weight.T)
        if self.flag is not None:
            assert has_knowledge is not None
            has = has_knowledge.unsqueeze(1)
            z = z * has + (1 - has) * self.flag
        z = self.dropout(torch.tanh(z + self.linear.bias))
        return torch.cat([torch.ones_like(z[:, :1]), z], dim=1)


def standardisation(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """What to subtract and to multiply by, float32; a dimension with std 0 is multiplied by 0.

    Raises:
        ValueError: another shape than (knowledge_dim,), a value that is not finite, or std below 0.
    """
    if mean.dim() != 1 or mean.shape != std.shape:
        raise ValueError(
            "mean and std of the knowledge must both be (knowledge_dim,); got "
            f"{tuple(mean.shape)} and {tuple(std.shape)}."
        )
    bad = ~(mean.isfinite() & std.isfinite() & (std >= 0))
    if bad.any():
        column = int(bad.nonzero()[0])
        raise ValueError(
            "mean and std of the knowledge must be finite, std at least 0; got mean "
            f"{float(mean[column])}, std {float(std[column])} in dimension {column}. Encode again."
        )
    std = std.float()
    return mean.float(), torch.where(std > 0, 1 / std, torch.zeros_like(std))


class UserMeta(nn.Module):
    """Layers generated per user, between the interaction and the backbone.

    With a width: h = down(x), then `num_layers` times h <- h + act(W(z) h + b(z)), and
    y = x + up(h). Without (None): y <- y + s * act(W(z) y + b(z)) on all of x, with a learned
    scale s per layer and element. `up` and s start at 0, so step 0 is the bare backbone.

    Not `residual`: h <- act(W(z) h + b(z)) and y = up(h), or y <- act(W(z) y + b(z)) on all of x:
    the backbone sees x through the generated layers alone.

    Shape:
        x: (B, in_dim), float.
        knowledge: (U, knowledge_dim), float, raw vectors of the batch's users.
        user_index: (B,), int64 in [0, U).
        has_knowledge: (U,), float, 0 where the store has no vector.
        returns: (B, in_dim), float.

    Raises:
        ValueError: a size is below 1, mean or std does not fit, or the form is unknown.

    Source:
        LLM4MSR (arXiv 2406.12529) puts user-level meta layers at the bottom of the backbone and
        leaves their size and form open. The residual is M2M's (arXiv 2201.06814); the narrow
        `width` is HAMUR's adapter (arXiv 2309.06217): a full in_dim x in_dim matrix per user costs
        (in_dim / width)^2 as much.

    Example:
        >>> meta = UserMeta(8, knowledge_dim=6, mean=torch.zeros(6), std=torch.ones(6), width=4)
        >>> x, index = torch.ones(3, 8), torch.tensor([0, 1, 1])
        >>> bool((meta(x, torch.rand(2, 6), index, torch.ones(2)) == x).all())  # at step 0
        True
    """

    def __init__(
        self,
        in_dim: int,
        knowledge_dim: int,
        mean: Tensor,
        std: Tensor,
        rank: int = 16,
        width: int | None = 32,
        num_layers: int = 1,
        activation: str = "silu",
        dropout: float = 0.0,
        form: str = "auto",
        standardize: bool = True,
        residual: bool = True,
    ) -> None:
        super().__init__()
        check_positive(num_layers=num_layers, width=1 if width is None else width)
        check_form(form)
        if len(mean) != knowledge_dim:
            raise ValueError(
                f"mean must have knowledge_dim={knowledge_dim} numbers; got {len(mean)}"
            )
        self.form, self.residual = form, residual
        self.reducer = KnowledgeReducer(
            rank, mean, std, dropout, flag=True, standardize=standardize
        )
        size = width or in_dim
        self.layers = nn.ModuleList(GeneratedLinear(size, size, rank) for _ in range(num_layers))
        self.activation = make_activation(activation)
        self.scales: nn.ParameterList | None = None
        self.down: nn.Module = nn.Identity()
        self.up: nn.Module = nn.Identity()
        if width is not None:
            self.down, self.up = nn.Linear(in_dim, width), nn.Linear(width, in_dim)
            if residual:
                nn.init.zeros_(self.up.weight)
                nn.init.zeros_(self.up.bias)
        elif residual:
            self.scales = nn.ParameterList(torch.zeros(in_dim) for _ in range(num_layers))

    def forward(
        self, x: Tensor, knowledge: Tensor, user_index: Tensor, has_knowledge: Tensor
    ) -> Tensor:
        """Change each row by what is known of its user."""
        z = self.reducer(knowledge, has_knowledge)
        return self.change(x, make_codes(z, user_index, self.form))

    def change(self, x: Tensor, codes: Codes) -> Tensor:
        """Change each row by the code of its user."""
        h = codes.enter(self.down(x))
        for number, layer in enumerate(self.layers):
            h = self.update(h, layer(h, codes), number)
        return self.leave(x, codes.leave(h))

    def update(self, h: Tensor, generated: Tensor, number: int) -> Tensor:
        """What h is after the generated layer of that number, whose output is given."""
        change: Tensor = self.activation(generated)
        if not self.residual:
            return change
        return h + (change if self.scales is None else self.scales[number] * change)

    def leave(self, x: Tensor, h: Tensor) -> Tensor:
        """What the backbone sees in place of x, from h after the last layer."""
        made: Tensor = self.up(h)
        return x + made if self.residual and self.scales is None else made


def fuse(logits: Tensor, change: Tensor, fusion: Fusion) -> Tensor:
    """Logits of a backbone and those of `ScenarioMeta`, (B, num_tasks): a 0 of these changes none.

    add: logits + change. gate: logits * 2 sigmoid(change).
    """
    return logits + change if fusion == "add" else logits * (2 * torch.sigmoid(change))


class ScenarioMeta(nn.Module):
    """A network generated per scenario, in parallel with the backbone, whose logits it changes.

    `num_layers` hidden layers act(W(z_s) h + b(z_s)), then a generated linear layer to the logits,
    which starts at 0, so step 0 is the bare backbone. `fusion` says how they join, see `fuse`.

    Shape:
        x: (B, in_dim), float.
        scenario: (B,), int64 in [0, S), S being the rows of `knowledge`.
        returns: (B, num_tasks), float, for `fuse`.

    Raises:
        ValueError: a size is below 1, the form is unknown, or a vector is not finite.

    Source:
        LLM4MSR puts scenario-level meta layers in parallel with the backbone and leaves the fusion
        open; adding logits is how STAR joins its auxiliary network, a gate of up to 2 how PEPNet
        joins what it knows of a scenario. The vectors are standardised
        over the scenarios and kept as a buffer, so that a saved model needs no store for them.

    Example:
        >>> meta = ScenarioMeta(in_dim=8, knowledge=torch.rand(3, 6), width=4)
        >>> meta(torch.ones(2, 8), torch.tensor([2, 0])).tolist()  # at step 0
        [[0.0], [0.0]]
    """

    def __init__(
        self,
        in_dim: int,
        knowledge: Tensor,
        num_tasks: int = 1,
        rank: int = 16,
        width: int | None = 32,
        num_layers: int = 1,
        activation: str = "silu",
        dropout: float = 0.0,
        form: str = "auto",
        standardize: bool = True,
        fusion: Fusion = "add",
    ) -> None:
        super().__init__()
        check_positive(num_layers=num_layers, width=1 if width is None else width)
        check_form(form)
        if knowledge.dim() != 2 or not len(knowledge):
            raise ValueError(f"scenario knowledge must be (S, H); got {tuple(knowledge.shape)}.")
        knowledge = knowledge.float()
        self.form, self.fusion = form, fusion
        self.register_buffer("knowledge", knowledge)
        std, mean = torch.std_mean(knowledge, dim=0, correction=0)
        self.reducer = KnowledgeReducer(rank, mean, std, dropout, standardize=standardize)
        sizes = [in_dim, *[width or in_dim] * num_layers]
        self.layers = nn.ModuleList(
            GeneratedLinear(a, b, rank) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.head = GeneratedLinear(sizes[-1], num_tasks, rank, zero=True)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Logits that each row's scenario adds."""
        codes = make_codes(self.reducer(self.get_buffer("knowledge")), scenario, self.form)
        h = codes.enter(x)
        for layer in self.layers:
            h = self.activation(layer(h, codes))
        return codes.leave(self.head(h, codes))
