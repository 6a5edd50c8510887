"""Interaction layer: joins embeddings and dense features into one vector x per row."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msrec.model.layers.mlp import MLP, check_positive

MODES = ("concat", "dot", "concat_dot")
MAX_TRACED_VECTORS = 16
"""Vectors up to which a program of `torch.export` computes each pair alone. A batch of products of
7 vectors of size 16 takes 3 times as long, one of 24 vectors less."""


class PairDots(nn.Module):
    """Dot products of all pairs of different vectors.

    Shape:
        vectors: (B, num_vectors, D), float.
        returns: (B, out_dim), float, where out_dim is num_vectors (num_vectors - 1) / 2.

    Example:
        >>> PairDots(3)(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]])).tolist()
        [[11.0, 2.0, 4.0]]
    """

    def __init__(self, num_vectors: int) -> None:
        super().__init__()
        rows, columns = torch.tril_indices(num_vectors, num_vectors, offset=-1)
        self.register_buffer("pairs", rows * num_vectors + columns, persistent=False)
        self.out_dim = len(rows)

    def forward(self, vectors: Tensor) -> Tensor:
        """Returns the products of each row."""
        count = vectors.shape[1]
        if count <= MAX_TRACED_VECTORS and torch.compiler.is_exporting():
            dots = [(vectors[:, i : i + 1] * vectors[:, :i]).sum(2) for i in range(1, count)]
            return torch.cat(dots, dim=1)
        every = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        return every.index_select(1, self.get_buffer("pairs"))


class Interaction(nn.Module):
    """Embeddings and dense features of a row, joined as in DLRM.

    `concat` returns [bottom(dense), embeddings]. `dot` returns [bottom(dense), dot products of all
    pairs of vectors], where bottom(dense) is one of the vectors. `concat_dot` returns all three.
    Without dense features there is no bottom MLP.

    Shape:
        emb: (B, num_sparse, dim), float.
        dense: (B, num_dense), float.
        returns: (B, out_dim), float.

    Raises:
        ValueError: the mode is unknown, or it needs dot products and bottom(dense) has another
            size than `dim`.

    Source:
        Naumov et al., arXiv 1906.00091: `dot`, pairs below the diagonal, no self product. `concat`
        is what the multi-scenario papers use.

    Example:
        >>> join = Interaction(num_sparse=3, dim=4, num_dense=2, bottom_dims=[4], mode="dot")
        >>> join(torch.zeros(5, 3, 4), torch.zeros(5, 2)).shape  # 4 + 4 * 3 / 2
        torch.Size([5, 10])
    """

    def __init__(
        self,
        num_sparse: int,
        dim: int,
        num_dense: int = 0,
        bottom_dims: Sequence[int] = (),
        mode: str = "concat",
    ) -> None:
        super().__init__()
        check_positive(num_sparse=num_sparse, dim=dim)
        if mode not in MODES:
            raise ValueError(f"interaction mode must be one of {', '.join(MODES)}; got {mode!r}.")
        self.mode = mode
        self.num_dense = num_dense
        self.bottom = MLP(num_dense, bottom_dims if num_dense else ())
        if mode != "concat" and num_dense and self.bottom.out_dim != dim:
            raise ValueError(
                f"bottom_dims must end with the embedding size {dim} for mode {mode!r}; got "
                f"{list(bottom_dims)}. Append {dim} to it, or use mode 'concat'."
            )
        self.dots = PairDots(num_sparse + (num_dense > 0))
        self.dense_dim = self.bottom.out_dim
        """Columns of the output before the first embedding."""
        self.out_dim = self.dense_dim
        if mode != "dot":
            self.out_dim += num_sparse * dim
        if mode != "concat":
            self.out_dim += self.dots.out_dim
        check_positive(interaction_out_dim=self.out_dim)

    def forward(self, emb: Tensor, dense: Tensor) -> Tensor:
        """Joins embeddings and dense features."""
        bottom = [self.bottom(dense)] if self.num_dense else []
        parts = list(bottom)
        if self.mode != "dot":
            parts.append(emb.flatten(1))
        if self.mode != "concat":
            vectors = torch.cat([*(h.unsqueeze(1) for h in bottom), emb], dim=1)
            parts.append(self.dots(vectors))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
