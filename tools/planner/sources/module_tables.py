"""Tables of any TorchRec module, read without memory for its weights."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from pydantic import ValidationError
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from msrec.data.io.validation import first_error
from msrec.tools.planner.tables import Precision, TableLoad

WRAPPERS = {
    "FeatureProcessedEmbeddingBagCollection": "_embedding_bag_collection",
    "ManagedCollisionEmbeddingBagCollection": "_embedding_module",
    "ManagedCollisionEmbeddingCollection": "_embedding_module",
}
"""Modules that TorchRec shards with the collection inside, by their own name -> its attribute."""


class Collection(NamedTuple):
    """A collection of tables in a model.

    Attributes:
        path: name in the model, under which a plan has it.
        kind: `pooled` for an EmbeddingBagCollection, `sequence` for an EmbeddingCollection.
        configs: TorchRec's configs of the tables.
        weighted: whether ids come with weights.
    """

    path: str
    kind: Literal["pooled", "sequence"]
    configs: Sequence[Any]
    weighted: bool


def build_on_meta(factory: str) -> nn.Module:
    """Calls `package.module:factory` on the meta device and returns the model.

    Raises:
        ValueError: there is no such function, it fails, or it returns no module.
    """
    module_name, colon, name = factory.partition(":")
    if not colon or not name:
        raise ValueError(f"--model must be package.module:factory; got {factory!r}.")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--model {factory} must be importable; {error}.") from None
    try:
        with torch.device("meta"):
            model = function()
    except Exception as error:
        raise ValueError(
            f"--model {factory} must build the model without arguments on the meta device; it "
            f"raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"--model {factory} must return a torch module; it returned {model!r:.60}."
        )
    return model


def collections_of(model: nn.Module) -> Iterator[Collection]:
    """Yields the collections of tables of a model before sharding, with their paths."""
    inside: set[str] = set()
    for path, module in model.named_modules():
        if any(path == each or path.startswith(f"{each}.") for each in inside):
            continue
        wrapper = WRAPPERS.get(type(module).__name__)
        collection = getattr(module, wrapper) if wrapper else module
        if isinstance(collection, EmbeddingBagCollection):
            weighted = wrapper == "_embedding_bag_collection" or collection.is_weighted()
            yield Collection(path, "pooled", collection.embedding_bag_configs(), weighted)
        elif isinstance(collection, EmbeddingCollection):
            yield Collection(path, "sequence", collection.embedding_configs(), False)
        else:
            continue
        inside.add(path)


def tables_of(model: nn.Module, pooling: Mapping[str, float] | None = None) -> list[TableLoad]:
    """Returns the tables of all collections of a model, under their real paths.

    Args:
        model: before sharding; on the meta device it takes no memory.
        pooling: table -> mean number of ids per row and feature; 1 for the others.

    Raises:
        ValueError: the model has no collection, two tables of one name, or a table that cannot be
            planned; names it.
    """
    tables: dict[str, TableLoad] = {}
    for collection in collections_of(model):
        for config in collection.configs:
            table = _table(config, collection, pooling or {})
            if table.name in tables:
                first = tables[table.name].module
                raise ValueError(
                    f"tables of a model must have different names to be planned; {table.name} is "
                    f"in {first!r} and in {collection.path!r}."
                )
            tables[table.name] = table
    if not tables:
        raise ValueError(
            f"the model must have an EmbeddingBagCollection or EmbeddingCollection; "
            f"{type(model).__name__} has none."
        )
    if unknown := sorted(set(pooling or {}) - set(tables)):
        raise ValueError(f"pooling must be of tables of the model; got {unknown[0]!r}.")
    return list(tables.values())


def dense_parameters_of(model: nn.Module) -> int:
    """Returns the number of parameters outside the tables."""
    paths = [f"{each.path}." if each.path else "" for each in collections_of(model)]
    names = (pair for pair in model.named_parameters() if not pair[0].startswith(tuple(paths)))
    return sum(parameter.numel() for _, parameter in names)


def _table(config: Any, collection: Collection, pooling: Mapping[str, float]) -> TableLoad:
    precision = config.data_type.name.lower()
    if precision not in get_args(Precision):
        raise ValueError(
            f"table {config.name!r} must be of {', '.join(get_args(Precision))} to be planned; it "
            f"is {precision}."
        )
    try:
        return TableLoad(
            name=config.name,
            rows=config.num_embeddings,
            dim=config.embedding_dim,
            features=len(config.feature_names),
            pooling=pooling.get(config.name, 1.0),
            kind=collection.kind,
            weighted=collection.weighted,
            precision=precision,
            module=collection.path,
        )
    except ValidationError as error:
        raise ValueError(f"table {config.name!r} of the model: {first_error(error)}.") from None
