from zoo import LAYOUT

from slow import dense, layers

OPTIONS = {"dims": [8, 5]}
PRIVATE = ()


def slow(model, x, s):
    starts = [LAYOUT.start + i * LAYOUT.dim for i in range(len(LAYOUT.names))]
    vectors = [x[start : start + LAYOUT.dim] for start in starts]
    pairs = sum(vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i))
    return dense(model.first_order, x) + pairs + dense(model.head, layers(model.mlp, x))
