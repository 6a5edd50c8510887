from slow import tower

OPTIONS = {"dims": [8, 5]}
PRIVATE = ("towers.",)


def slow(model, x, s):
    return tower(model.towers, x, s)
