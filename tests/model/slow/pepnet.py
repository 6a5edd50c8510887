from slow import ppnet
from slow.epnet import gated

OPTIONS = {"dims": [8, 5], "scenario_dim": 3, "gate_dim": 4}
PRIVATE = ("towers.layers.", ".own.", "scenario_embedding")


def slow(model, x, s):
    return ppnet.slow(model.towers, gated(model.gate, x, s), s)
