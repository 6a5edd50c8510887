from slow import dense, layers

OPTIONS = {"dims": [8, 5]}
PRIVATE = ()


def slow(model, x, s):
    return dense(model.head, layers(model.mlp, x))
