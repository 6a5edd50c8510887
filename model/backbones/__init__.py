"""Registry of the backbones: the models by name, their options, and their construction."""

import inspect
from collections.abc import Callable
from typing import Any

from msrec.model.backbone import Backbone, BackboneShape
from msrec.model.backbones.adasparse import AdaSparse
from msrec.model.backbones.aitm import AITM
from msrec.model.backbones.baselines import ESMM, MLP, Separate, SharedBottom
from msrec.model.backbones.feature_interaction import DLRM, DCNv2, DeepFM
from msrec.model.backbones.hamur import HAMUR
from msrec.model.backbones.hinet import HiNet
from msrec.model.backbones.m2m import M2M
from msrec.model.backbones.m3oe import M3oE
from msrec.model.backbones.mmoe import MMoE, OMoE
from msrec.model.backbones.pepnet import EPNet, PEPNet, PPNet
from msrec.model.backbones.ple import PLE
from msrec.model.backbones.sarnet import SARNet
from msrec.model.backbones.star import STAR, AdaptDHM
from msrec.model.layers.mlp import Hidden

BACKBONES: dict[str, type[Backbone]] = {
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
    "esmm": ESMM,
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


def backbone_options(name: str) -> dict[str, inspect.Parameter]:
    """Returns the options of a backbone in a run's config, in order, with types and defaults.

    They are the keyword parameters of its constructor; `hidden` stands for the fields of `Hidden`.
    """
    options: dict[str, inspect.Parameter] = {}
    for key, parameter in inspect.signature(BACKBONES[name]).parameters.items():
        if parameter.annotation is Hidden:
            options.update(inspect.signature(Hidden).parameters)
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            options[key] = parameter
    return options


def make_backbone(
    name: str,
    shape: BackboneShape,
    activation: str = Hidden.activation,
    dropout: float = Hidden.dropout,
    **options: Any,
) -> Backbone:
    """Builds a backbone from its options.

    Raises:
        ValueError: an option is out of its range; the message names the backbone.

    Example:
        >>> shape = BackboneShape(in_dim=8, num_scenarios=3)
        >>> type(make_backbone("mmoe", shape, num_experts=2, dropout=0.1)).__name__
        'MMoE'
    """
    make: Callable[..., Backbone] = BACKBONES[name]
    try:
        return make(shape, hidden=Hidden(activation, dropout), **options)
    except ValueError as error:
        raise ValueError(f"backbone {name}: {error}") from None
