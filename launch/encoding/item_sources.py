"""Sources of item vectors: what was fitted for an earlier store, and TF-IDF without an LLM."""

import shutil
from pathlib import Path

from msrec.data.io.atomic_files import atomic_path
from msrec.data.io.local_copies import local_copy
from msrec.data.llm.item_source.lsa import LsaModel
from msrec.data.llm.store import LSA_FILE, MANIFEST
from msrec.data.llm.store_writer import MAX_BLOCK, Block
from msrec.launch.encoding.block_job import BlockJob
from msrec.launch.encoding.levels import LevelSpec
from msrec.launch.encoding.options import EncodeOptions
from msrec.launch.encoding.speed import SpeedCounter

FITTED_FILES = (LSA_FILE, "projection-*.npz", "codes-*.npz")


def copy_fitted(spec: LevelSpec) -> None:
    """Copies the fitted files of an earlier store, so that old vectors stay valid for its runs."""
    if not spec.source or spec.previous is None:
        return
    folder: Path = spec.folder
    for file in (
        p for name in FITTED_FILES for p in local_copy(spec.previous, MANIFEST).glob(name)
    ):
        if not (folder / file.name).is_file():
            with atomic_path(folder / file.name) as scratch:
                shutil.copyfile(file, scratch)


def encode_lsa(
    spec: LevelSpec, block: Block, options: EncodeOptions, counter: SpeedCounter
) -> None:
    """Fits the model to all items unless it is there, and transforms those that remain."""
    prompts = spec.prompts(block, options, is_prepared=False)
    job = BlockJob(spec, block, prompts, counter)
    file = spec.folder / LSA_FILE
    if not file.is_file():
        LsaModel.fit(prompts.frame["text"].to_list()).save(file)
    # Always the saved model, which is in float32: a resumed run then gives the same vectors.
    model = LsaModel.load(file)
    for window in job.remaining.iter_slices(MAX_BLOCK):
        texts = window["text"].to_list()
        columns = window.drop("text").to_dict(as_series=False)
        num_terms = model.vectoriser.transform(texts).getnnz(axis=1).tolist()
        columns |= {"tokens": num_terms, "truncated": [False] * len(texts)}
        job.add_part(columns, model.transform(texts))
    job.finish(**model.fields)
