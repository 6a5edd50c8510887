"""Latent semantic analysis: TF-IDF of item texts and its truncated SVD, a source without LLM.

Source:
    Deerwester et al., Indexing by latent semantic analysis, JASIS 1990; scikit-learn does the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from msrec.data.io.atomic_files import atomic_path
from msrec.data.llm.item_source.settings import LSA, MAX_COMPONENTS, SVD, TFIDF

NEW_ITEMS = (
    "lsa.npz has terms (UTF-8, one a line), idf and components (K, terms). A vector is the product "
    "of components and the TF-IDF of a text, scaled to length 1: LsaModel.load(FILE).transform."
)


@dataclass(frozen=True)
class LsaModel:
    """Fitted TF-IDF and components, which give a text its vector.

    Shape:
        vectoriser: of T terms.
        components: (K, T), float32.
        explained: share of the variance of the TF-IDF that the components keep, in [0, 1].
    """

    vectoriser: TfidfVectorizer
    components: np.ndarray
    explained: float

    @classmethod
    def fit(cls, texts: Sequence[str]) -> "LsaModel":
        """Fits the terms and up to `MAX_COMPONENTS` components to the texts of all items.

        Raises:
            ValueError: no term is in two texts.
        """
        vectoriser = TfidfVectorizer(**TFIDF)
        try:
            tfidf = vectoriser.fit_transform(texts)
        except ValueError as error:  # scikit-learn's words: "no terms remain", "empty vocabulary"
            raise ValueError(
                f"llm.sources=[{LSA}] must find a term in at least two item texts; there is none "
                f"in {len(texts)} ({error}). Leave {LSA} out."
            ) from None
        svd = TruncatedSVD(min(MAX_COMPONENTS, *tfidf.shape), **SVD).fit(tfidf)
        explained = float(svd.explained_variance_ratio_.sum())
        return cls(vectoriser, svd.components_.astype(np.float32), explained)

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the vectors (N, K), float32; zeros for a text without a known term."""
        return np.asarray(self.vectoriser.transform(texts) @ self.components.T, dtype=np.float32)

    def save(self, file: Path) -> None:
        """Writes the model in one step."""
        terms = "\n".join(self.vectoriser.get_feature_names_out())
        with atomic_path(file) as scratch, scratch.open("wb") as opened:
            np.savez(
                opened,
                allow_pickle=False,
                terms=np.frombuffer(terms.encode(), dtype=np.uint8),
                idf=self.vectoriser.idf_,
                components=self.components,
                explained=self.explained,
            )

    @classmethod
    def load(cls, file: Path) -> "LsaModel":
        """Reads a saved model."""
        with np.load(file, allow_pickle=False) as arrays:
            terms = arrays["terms"].tobytes().decode().split("\n")
            vectoriser = TfidfVectorizer(**TFIDF, vocabulary=terms)
            vectoriser.idf_ = arrays["idf"]
            return cls(vectoriser, arrays["components"], float(arrays["explained"]))

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a manifest that describe the fitted model."""
        return {
            "lsa_terms": self.components.shape[1],
            "lsa_explained": self.explained,
            "lsa_new_items": NEW_ITEMS,
            "scikit_learn": sklearn.__version__,
        }
