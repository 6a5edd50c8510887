"""Settings that decide the vectors of a source, which a store records and a run compares."""

import hashlib
from typing import Any

from msrec.data.io.paths import AnyPath
from msrec.data.llm.history_text import PLAIN_ITEM_TEXT, PLAIN_ITEM_VERSION
from msrec.data.llm.item_source.lsa import LSA, lsa_settings
from msrec.data.llm.store import VectorSettings
from msrec.data.schema import load_schema


def source_settings(dataset: AnyPath, source: str, vectors: VectorSettings) -> dict[str, Any]:
    """Returns the fields of a source's manifest that a run must agree with.

    Items have no history, so that the split and the training rows play no part.
    """
    settings = {
        "dataset": load_schema(dataset).name,
        "level": "item",
        "model": source,
        "template": "plain",
        "template_version": PLAIN_ITEM_VERSION,
        "template_sha256": hashlib.sha256(PLAIN_ITEM_TEXT.encode()).hexdigest(),
        "storage": "float16",
        "pca": None,
    }
    if source == LSA:
        return settings | {"lsa": lsa_settings()}
    names = ("pooling", "layer", "dtype", "max_tokens")
    return settings | {name: getattr(vectors, name) for name in names}
