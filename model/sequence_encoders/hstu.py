"""HSTU: gated blocks of pointwise attention over the history followed by the candidate."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from msrec.model.interest.histories import Histories
from msrec.model.layers.dropout import Dropout
from msrec.model.layers.precision import LayerNorm
from msrec.model.sequence_encoder import EncoderOptions, SequenceEncoder
from msrec.model.sequence_encoders.attention import check_heads, split_heads

NORM_EPS = 1e-6
"""Added to the variance in layer norms, as in the public code."""


class HSTUBlock(nn.Module):
    """Block of HSTU: pointwise attention with a gate and a residual; see `HSTU`.

    Shape:
        x: (B, L, D), float, L at most N.
        mask: (B, L), bool, which places count.
        returns: (B, L, D), float; (B, 1, D) of the last place with `last_only`.
    """

    def __init__(self, dim: int, num_places: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_places, self.num_heads = num_places, num_heads
        self.norm_in = LayerNorm(dim, NORM_EPS, elementwise_affine=False)
        self.norm_attention = LayerNorm(dim, NORM_EPS, elementwise_affine=False)
        self.maps = nn.Linear(dim, 4 * dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(num_places))
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, last_only: bool = False) -> Tensor:  # noqa: D102
        u, v, q, k = functional.silu(self.maps(self.norm_in(x))).chunk(4, dim=2)
        place = torch.arange(x.shape[1], device=x.device)
        query = place
        if last_only:
            x, u, q, query = x[:, -1:], u[:, -1:], q[:, -1:], place[-1:]
        distance = query.unsqueeze(1) - place
        q, k, v = (split_heads(each, self.num_heads) for each in (q, k, v))
        logits = q @ k.transpose(2, 3) + self.bias[distance.clamp(min=0)]
        is_read = (distance >= 0) & mask[:, None, None, :]
        weights = functional.silu(logits) / self.num_places * is_read
        mixed = self.norm_attention((weights @ v).transpose(1, 2).flatten(2))
        changed: Tensor = x + self.out(self.dropout(mixed * u))
        return changed


class HSTU(SequenceEncoder):
    """Hierarchical sequential transduction units: gated pointwise attention, without softmax.

    The sequence X is the history and, after it, the candidate, at most N places. It passes
    `num_layers` blocks, whose attention has heads::

        U, V, Q, K = split(SiLU(LayerNorm(X) W))
        A_ij = SiLU(Q_i . K_j + bias[i - j]) / N        for events j up to i, else 0
        Y    = X + (LayerNorm(A V) * U) W' + b'

    Columns are a layer norm of the candidate's place after the last block. Empty places are masked.

    Shape:
        items, histories, scenario: as in `SequenceEncoder`.
        returns: (B, dim), float; with an empty history the candidate attends to itself.

    Raises:
        ValueError: a size is below 1, or `num_heads` does not divide `dim`.

    Source:
        Zhai et al., ICML 2024 (arXiv 2402.17152). The relative bias is by place alone, one per
        block as in the public code, where the paper adds one by time; labels are added to the
        vectors of their events, where the paper interleaves items and actions. The layer norms
        before the maps and after attention have no learned scale, as in the public code, which also
        divides by N and normalises the output.
    """

    def __init__(
        self, dim: int, max_len: int, num_scenarios: int, options: EncoderOptions | None = None
    ) -> None:
        super().__init__(dim, max_len, num_scenarios)
        options = options or EncoderOptions()
        self.blocks = nn.ModuleList(
            HSTUBlock(dim, max_len + 1, options.num_heads, options.dropout)
            for _ in range(options.num_layers)
        )
        self.norm = LayerNorm(dim, NORM_EPS)
        self.out_dim = dim

    def forward(self, items: Tensor, histories: Histories, scenario: Tensor) -> Tensor:  # noqa: D102
        x, mask = self.row_events(items, histories, scenario).with_candidate()
        for number, block in enumerate(self.blocks, 1):
            x = block(x, mask, last_only=number == len(self.blocks))
        columns: Tensor = self.norm(x.squeeze(1))
        return columns
