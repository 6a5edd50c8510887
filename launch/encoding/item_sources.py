"""Item knowledge from several sources: each encodes the items into a folder of the store."""

import shutil
from dataclasses import replace
from pathlib import Path

from msrec.data.io.atomic_files import atomic_path
from msrec.data.io.paths import AnyPath, to_path
from msrec.data.llm.item_source.lsa import LsaModel
from msrec.data.llm.item_source.settings import LSA, source_settings
from msrec.data.llm.models.model_weights import model_folder, weights_sha256
from msrec.data.llm.prompts import item_prompts, require_text
from msrec.data.llm.store import LSA_FILE, VERSION, VectorSettings, item_source_folder
from msrec.data.llm.store_writer import StoreWriter
from msrec.data.schema import load_schema
from msrec.launch.encoding.encode import EncodeResult, check_vectors, counts_of, load_encoder
from msrec.launch.encoding.level_job import WINDOW_PROMPTS, LevelJob
from msrec.launch.encoding.options import EncodeOptions
from msrec.launch.encoding.speed import OnProgress, SpeedCounter

FITTED_FILES = (LSA_FILE, "projection-*.npz", "codes-*.npz")


def encode_items(
    dataset: AnyPath | str,
    store: Path | str,
    source: str,
    vectors: VectorSettings,
    options: EncodeOptions,
    on_progress: OnProgress | None = None,
) -> EncodeResult:
    """Encodes this rank's share of the items with one source; after a kill, the same call goes on.

    With `options.previous`, items whose text is unchanged keep their vectors bit by bit, and new
    ones get theirs by what was fitted for the earlier store.

    Args:
        dataset: whose items are encoded, as plain texts.
        store: folder of the knowledge store; the source has a folder in it.
        source: a model as in `llm.model`, or `lsa`.
        vectors: pooling, layer, dtype and max_tokens of a model; the rest is not used.
        options: of the job; `levels` is not used.
        on_progress: called after every batch.

    Raises:
        FileNotFoundError: the dataset, the model or the earlier store does not exist.
        ValueError: the folder was begun with other settings, the earlier store has other settings,
            `lsa` finds no term, or a vector is not finite.
    """
    dataset = to_path(dataset)
    require_text(dataset, "item")
    vectors = replace(vectors, model=source, storage="float16", pca=None)
    settings = source_settings(dataset, source, vectors) | {"version": VERSION}
    settings["num_items"] = load_schema(dataset).num_items
    rank, world_size = options.rank, options.world_size
    if source == LSA:
        rank, world_size = 0, 1  # the model is fitted to all items at once
        if options.rank > 0:
            return EncodeResult({}, None)
    else:
        check_vectors(model_folder(source), vectors, options)
        settings["model_sha256"] = weights_sha256(model_folder(source))
    folder = item_source_folder(Path(store), source)
    writer = StoreWriter(folder, settings, rank=rank, world_size=world_size)
    if writer.is_complete:
        return EncodeResult({"item": counts_of(writer)}, None)
    prompts = item_prompts(dataset, None, rank=rank, world_size=world_size)
    previous = item_source_folder(options.previous, source) if options.previous else None
    job = LevelJob(writer, prompts, previous)
    if previous is not None:
        _copy_fitted(previous, folder)
    counter = SpeedCounter(len(prompts), on_progress)
    counter.add(len(prompts) - job.remaining.height, 0)
    if source == LSA:
        return EncodeResult({"item": _run_lsa(job, folder / LSA_FILE, counter)}, None)
    encoder = None
    if job.remaining.height:
        encoder = load_encoder(model_folder(source), vectors, options, is_chat=False)
    counts = job.run(encoder, options, counter)
    speed = counter.speed(encoder, vectors.dtype) if encoder else None
    return EncodeResult({"item": counts}, speed)


def _copy_fitted(previous: Path, folder: Path) -> None:
    """Copies the fitted files of an earlier store, so that old vectors stay valid for its runs."""
    for file in (path for name in FITTED_FILES for path in previous.glob(name)):
        if not (folder / file.name).is_file():
            with atomic_path(folder / file.name) as scratch:
                shutil.copyfile(file, scratch)


def _run_lsa(job: LevelJob, file: Path, counter: SpeedCounter) -> dict[str, int]:
    """Fits the model unless it is there, transforms the remaining items, finishes the level."""
    if not file.is_file():
        LsaModel.fit(job.prompts.frame["text"].to_list()).save(file)
    # Always the saved model, which is in float32: a resumed run then gives the same vectors.
    model = LsaModel.load(file)
    num_encoded = job.remaining.height
    for window in job.remaining.iter_slices(WINDOW_PROMPTS):
        texts = window["text"].to_list()
        columns = window.drop("text").to_dict(as_series=False)
        num_terms = model.vectoriser.transform(texts).getnnz(axis=1).tolist()
        columns |= {"tokens": num_terms, "truncated": [False] * len(texts)}
        job.writer.write(columns, model.transform(texts))
        counter.add(len(texts), sum(num_terms))
    return job.finish(num_encoded, **model.fields)
