"""Multi-scenario models by name: (x, scenario, weight) -> logits."""

from torch import nn

from msrec.model.backbones.mmoe import MMoE
from msrec.model.backbones.shared_bottom import SharedBottom
from msrec.model.backbones.star import STAR

BACKBONES: dict[str, type[nn.Module]] = {
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "star": STAR,
}
