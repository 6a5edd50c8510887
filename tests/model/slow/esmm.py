from slow import formula, tower


@formula({"dims": [8, 5]}, private=("towers.",))
def esmm(model, x, s):
    """The logits alone; their product over the entire space belongs to the loss."""
    return tower(model.towers, x, s)
