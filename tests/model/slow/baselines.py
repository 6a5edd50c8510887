from slow import dense, formula, layers, tower


@formula({"dims": [8, 5]})
def mlp(model, x, s):
    return dense(model.head, layers(model.mlp, x))


@formula({"dims": [8, 5]}, private=("towers.",))
def separate(model, x, s):
    return tower(model.towers, x, s)


@formula({"dims": [8, 5]}, private=("towers.",))
def esmm(model, x, s):
    """The logits alone; their product over the entire space belongs to the loss."""
    return tower(model.towers, x, s)


@formula({"bottom_dims": [8, 5], "tower_dims": [3]}, private=("towers.",))
def shared_bottom(model, x, s):
    return tower(model.towers, layers(model.bottom, x), s)
