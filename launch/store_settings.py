"""What a store must say of itself to fit a config."""

from typing import Any

from msrec.data.llm.encoder import Layer
from msrec.data.llm.templates import load_template, template_of
from msrec.data.paths import AnyPath
from msrec.data.reading import parquet_files, parquet_metadata
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
    files = parquet_files(dataset / "train")
    name = template_of(schema.name, template)
    found = load_template(name)
    return {
        "dataset": schema.name,
        "split": schema.split.model_dump(mode="json"),
        "num_users": schema.num_users,
        "num_items": schema.num_items,
        "train_rows": sum(parquet_metadata(file).num_rows for file in files),
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
