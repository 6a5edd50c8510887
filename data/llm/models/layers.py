"""Layers of a base model of transformers."""

from copy import deepcopy

from torch import nn


def layers_of(model: nn.Module) -> nn.ModuleList:
    """Returns the layers of a base model, which are under one of the usual names."""
    for path in ("layers", "h", "blocks", "encoder.layer", "transformer.layer"):
        module = model
        for name in path.split("."):
            module = getattr(module, name, None)  # type: ignore[assignment]
        if isinstance(module, nn.ModuleList):
            return module
    raise ValueError(
        f"a model must have its layers under `layers` to read one of them; {type(model).__name__} "
        "has not. Use layer=last."
    )


def layers_or_model(model: nn.Module) -> nn.Module:
    """Returns the layers of a base model, or all of it where they have another name."""
    try:
        return layers_of(model)
    except ValueError:
        return model


def keep_layers(model: nn.Module, layer: int | str) -> None:
    """Removes the layers above the chosen one, and the final norm."""
    layers = layers_of(model)
    count = len(layers) // 2 if layer == "middle" else layer
    if not isinstance(count, int) or not 1 <= count <= len(layers):
        raise ValueError(f"layer must be last, middle or from 1 to {len(layers)}; got {layer!r}.")
    del layers[count:]
    for name in ("norm", "ln_f", "final_layernorm"):
        if isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, nn.Identity())


def lowest_layers(model: nn.Module, count: int) -> nn.Module:
    """Returns a copy of a model in float32, with its first layers only."""
    layers = layers_of(model)
    above = list(layers[count:])
    del layers[count:]
    try:
        return deepcopy(model).float()
    finally:
        layers.extend(above)


def flops_per_token(model: nn.Module) -> float:
    """Returns the operations of the layers' matrices per token, without attention.

    A multiplication and an addition for each weight.
    """
    matrices = (p for p in layers_or_model(model).parameters() if p.dim() == 2)
    return 2.0 * sum(matrix.numel() for matrix in matrices)
