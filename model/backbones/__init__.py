"""Multi-scenario models by name: (x, scenario, weight) -> logits."""

import inspect
from typing import Any

from torch import nn

from msrec.model.backbones.adaptdhm import AdaptDHM
from msrec.model.backbones.adasparse import AdaSparse
from msrec.model.backbones.aitm import AITM
from msrec.model.backbones.dcnv2 import DCNv2
from msrec.model.backbones.deepfm import DeepFM
from msrec.model.backbones.dlrm import DLRM
from msrec.model.backbones.epnet import EPNet
from msrec.model.backbones.hamur import HAMUR
from msrec.model.backbones.hinet import HiNet
from msrec.model.backbones.m2m import M2M
from msrec.model.backbones.m3oe import M3oE
from msrec.model.backbones.mlp import MLP
from msrec.model.backbones.mmoe import MMoE
from msrec.model.backbones.omoe import OMoE
from msrec.model.backbones.pepnet import PEPNet
from msrec.model.backbones.ple import PLE
from msrec.model.backbones.ppnet import PPNet
from msrec.model.backbones.sarnet import SARNet
from msrec.model.backbones.separate import Separate
from msrec.model.backbones.shared_bottom import SharedBottom
from msrec.model.backbones.star import STAR
from msrec.model.layers.feature_layout import FeatureLayout

BACKBONES: dict[str, type[nn.Module]] = {
    "mlp": MLP,
    "dlrm": DLRM,
    "dcnv2": DCNv2,
    "deepfm": DeepFM,
    "separate": Separate,
    "shared_bottom": SharedBottom,
    "omoe": OMoE,
    "mmoe": MMoE,
    "ple": PLE,
    "aitm": AITM,
    "hinet": HiNet,
    "sarnet": SARNet,
    "star": STAR,
    "m2m": M2M,
    "adasparse": AdaSparse,
    "adaptdhm": AdaptDHM,
    "hamur": HAMUR,
    "m3oe": M3oE,
    "epnet": EPNet,
    "ppnet": PPNet,
    "pepnet": PEPNet,
}

GIVEN = ("in_dim", "num_scenarios", "num_tasks", "fields")
"""Parameters that the data decide; all others of a constructor are options of a run."""


def backbone_options(name: str) -> dict[str, inspect.Parameter]:
    """What one may choose about a backbone: its constructor's parameters, with their defaults."""
    signature = inspect.signature(BACKBONES[name], eval_str=True)
    return {key: p for key, p in signature.parameters.items() if key not in GIVEN}


def make_backbone(
    name: str,
    fields: FeatureLayout,
    in_dim: int,
    num_scenarios: int,
    num_tasks: int = 1,
    **options: Any,
) -> nn.Module:
    """Build a backbone; `fields` goes to those that look at single features.

    Raises:
        ValueError: an option is out of its range; names the backbone.

    Example:
        >>> fields = FeatureLayout(("user_id", "item_id"), dim=4)
        >>> type(make_backbone("mmoe", fields, in_dim=8, num_scenarios=3, num_experts=2)).__name__
        'MMoE'
    """
    cls = BACKBONES[name]
    if "fields" in inspect.signature(cls).parameters:
        options["fields"] = fields
    try:
        return cls(in_dim, num_scenarios, num_tasks, **options)
    except ValueError as error:
        raise ValueError(f"backbone {name}: {error}") from None
