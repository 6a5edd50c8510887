"""Settings that decide the vectors of a source, which a store records and a run compares."""

import hashlib
from typing import Any

from msrec.data.io.paths import AnyPath
from msrec.data.llm.store import VectorSettings
from msrec.data.llm.text.history_text import PLAIN_ITEM_TEXT, PLAIN_ITEM_VERSION
from msrec.data.schema import load_schema

LSA = "lsa"
"""Name of the source in `llm.sources`."""
MAX_COMPONENTS = 256
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
TOKEN_PATTERN = rf"[{_CJK}]|[^\W{_CJK}]+"
"""A word of any length; a single character where a script does not separate words by spaces."""
TFIDF: dict[str, Any] = {
    "sublinear_tf": True,
    "ngram_range": (1, 2),
    "min_df": 2,
    "token_pattern": TOKEN_PATTERN,
}
SVD: dict[str, Any] = {"n_iter": 7, "random_state": 0}


def lsa_settings() -> dict[str, Any]:
    """Returns the settings that decide the vectors, for the manifest of a store."""
    return {**TFIDF, "ngram_range": [1, 2], "max_components": MAX_COMPONENTS, **SVD}


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
