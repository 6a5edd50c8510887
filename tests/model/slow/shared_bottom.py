from slow import layers, tower

OPTIONS = {"bottom_dims": [8, 5], "tower_dims": [3]}
PRIVATE = ("towers.",)


def slow(model, x, s):
    return tower(model.towers, layers(model.bottom, x), s)
