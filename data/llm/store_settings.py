"""What a store must say of itself to fit a config."""

from typing import Any

from msrec.data.io.parquet_files import num_rows
from msrec.data.io.paths import AnyPath
from msrec.data.llm.store import Layer
from msrec.data.llm.templates import load_template, template_of
from msrec.data.schema import load_schema


def store_settings(
    dataset: AnyPath,
    *,
    model: str,
    template: str,
    pooling: str,
    layer: Layer,
    answer_tokens: int,
    dtype: str,
    max_tokens: int,
    storage: str,
    pca: int | None,
) -> dict[str, Any]:
    """What a config says of a store's vectors: how they are made, and of which training rows."""
    schema = load_schema(dataset)
    name = template_of(schema.name, template)
    found = load_template(name)
    return {
        "dataset": schema.name,
        "split": schema.split.model_dump(mode="json"),
        "num_users": schema.num_users,
        "num_items": schema.num_items,
        "train_rows": num_rows(dataset / "train"),
        "model": model,
        "template": name,
        "template_version": found.version,
        "template_sha256": found.sha256,
        "pooling": pooling,
        "layer": layer,
        "answer_tokens": answer_tokens if pooling == "generate" else None,
        "dtype": dtype,
        "max_tokens": max_tokens,
        "storage": storage,
        "pca": pca,
    }
