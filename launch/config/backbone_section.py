"""Options of each backbone as a config section, made from the constructor's parameters."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, create_model

from msrec.data.io.validation import MAX_COUNT, MAX_WIDTH, StrictModel, Widths
from msrec.model.backbones import BACKBONES, backbone_options

DESCRIPTIONS = {
    "activation": "Activation of the hidden layers.",
    "adapter_dim": "Width of an adapter.",
    "alpha": "Steepness of the pruning sigmoid at the first step.",
    "alpha_step": "Growth of `alpha` per training step.",
    "aux_dims": "Layer sizes of the auxiliary network.",
    "beta": "Share of a cluster centre that one update keeps, in [0, 1].",
    "adasparse.beta": "Largest scaling factor of a neuron.",
    "bottom_dims": "Layer sizes of the bottom MLP.",
    "calibrator": "Weight of the term that keeps a label below the one before it; 0 is off.",
    "dim": "Width of the blocks before the experts.",
    "dims": "Layer sizes of the MLP.",
    "dropout": "Dropout rate of the hidden layers.",
    "eps": "Threshold in [0, 1) below which a neuron is pruned.",
    "expert_dims": "Layer sizes of an expert.",
    "form": "`binary` prunes neurons, `scaling` scales them, `fusion` does both.",
    "gate_dim": "Width of the hidden layer of a gate.",
    "gates": "`per_pair`: a gate per scenario and label; `factored`: the sum of a scenario's gate "
    "and a label's.",
    "head_dims": "Layer sizes of a label's head.",
    "hyper_dims": "Layer sizes of the network that makes the row's k x k matrix.",
    "id_features": "Features whose vectors the gates of the towers read.",
    "k": "Rows and columns of the matrix that is made per row.",
    "norm": "Normalisation after each linear layer; `none` is off.",
    "hamur.norm": "Normalisation of an adapter: by the moments of the scenario's rows, or per row.",
    "star.norm": "`partitioned` normalises the input by the moments of the scenario's rows.",
    "num_adapters": "Number of adapters, one after each of the last layers.",
    "num_clusters": "Number of clusters of rows.",
    "num_cross": "Number of cross layers.",
    "num_experts": "Number of experts.",
    "num_levels": "Number of extraction levels.",
    "num_meta_layers": "Number of generated layers of a meta unit.",
    "num_passes": "Number of updates of the cluster centres per training step.",
    "num_shared": "Number of experts that all scenarios and labels share.",
    "num_specific": "Number of experts of each scenario.",
    "num_task": "Number of experts of each label, with several labels.",
    "num_task_experts": "Number of shared experts after the scenario layer; with several labels "
    "also of each label's experts.",
    "num_tower_layers": "Number of meta units of each label's tower.",
    "own_share": "Initial weight, in (0, 1), of the scenario's (label's) own expert against the "
    "others.",
    "rank": "Rank of the cross layers; null is full rank.",
    "scenario_dim": "Length of the scenario's embedding.",
    "scenario_share": "Initial weight, in (0, 1), of the scenario experts against the shared ones.",
    "task_share": "Initial weight, in (0, 1), of the label experts against the shared ones.",
    "structure": "`parallel` joins MLP and cross layers, `stacked` puts the MLP after them.",
    "task_expert_dims": "Layer sizes of an expert after the scenario layer.",
    "tower_dims": "Layer sizes of the tower of each scenario and label.",
    "view_dims": "Layer sizes of the MLP over the scenario's embedding.",
}
"""Option -> description. `backbone.option` comes before `option`."""


class BackboneOptions(StrictModel, use_attribute_docstrings=False):
    """Base of the sections below, which have no source code where pydantic could look for docs."""


def options_model(name: str) -> type[BackboneOptions]:
    """Returns a section with `name` and the parameters of the backbone's constructor.

    A new backbone needs no entry above: its options then refer to the docstring of its class.

    Example:
        >>> options_model("mlp")().model_dump()
        {'name': 'mlp', 'dims': [256, 128], 'activation': 'relu', 'dropout': 0.0, 'norm': 'none'}
    """
    chosen = Field(name, description="Name of the backbone; `msrec zoo` lists all.")
    fields: dict[str, Any] = {"name": (Literal[name], chosen)}
    for option, parameter in backbone_options(name).items():
        kind, default = parameter.annotation, parameter.default
        if get_origin(kind) is Sequence:  # so that YAML and the saved config hold plain lists
            kind, default = (Widths if get_args(kind)[0] is int else list[str]), list(default)
        elif kind in (int, int | None):  # a constructor itself refuses a zero where it must
            largest = MAX_COUNT if option.startswith("num_") else MAX_WIDTH
            kind = Annotated[kind, Field(ge=0, le=largest)]
        elif option == "dropout":
            kind = Annotated[float, Field(ge=0, lt=1)]
        description = DESCRIPTIONS.get(f"{name}.{option}") or DESCRIPTIONS.get(option)
        description = description or f"See the docstring of {BACKBONES[name].__name__}."
        fields[option] = (kind, Field(default, description=description))
    return create_model(name, __base__=BackboneOptions, __doc__=f"Options of {name}.", **fields)


BACKBONE_OPTIONS = {name: options_model(name) for name in BACKBONES}
BackboneConfig: Any = Annotated[
    Union[tuple(BACKBONE_OPTIONS.values())],  # noqa: UP007
    Field(discriminator="name"),
]
