"""Encoding job: prompts of a dataset through the frozen model into a knowledge store."""

from dataclasses import dataclass, field
from pathlib import Path

from msrec.data.io.paths import AnyPath, to_path
from msrec.data.llm.encoder import FrozenEncoder
from msrec.data.llm.models.model_limits import check_model
from msrec.data.llm.models.model_weights import load_tokenizer, model_folder, weights_sha256
from msrec.data.llm.prompts import level_prompts, require_text
from msrec.data.llm.store import VERSION, KnowledgeStore, VectorSettings, store_settings
from msrec.data.llm.store_writer import StoreWriter
from msrec.data.llm.templates import load_template
from msrec.data.llm.tokenization import PromptTokenizer
from msrec.launch.encoding.level_job import LevelJob
from msrec.launch.encoding.options import EncodeOptions
from msrec.launch.encoding.speed import OnProgress, Speed, SpeedCounter


@dataclass(frozen=True)
class EncodeResult:
    """Counts of this rank's share by level, and the speed if anything was encoded.

    The counts are keys, encoded (by this run), reused (from the earlier store), truncated and
    tokens (of the encoded prompts), no_history, left_out, and merged (1 if the level is complete).
    """

    levels: dict[str, dict[str, int]]
    speed: Speed | None
    sources: "dict[str, EncodeResult]" = field(default_factory=dict)
    """Source of item vectors -> its result."""


def encode(
    dataset: AnyPath | str,
    store: Path | str,
    vectors: VectorSettings,
    options: EncodeOptions,
    on_progress: OnProgress | None = None,
) -> EncodeResult:
    """Encodes this rank's share of some levels; after a kill, the same call goes on.

    Ranks need no process group, only the same `store` folder, in which each level has a folder:
    the last rank to finish a level merges it. Keys of any part in there are not encoded again.

    Raises:
        FileNotFoundError: the dataset, the model or the earlier store does not exist.
        ValueError: an option is wrong, the folder was begun with other settings, the earlier store
            has other settings, or a vector is not finite.
    """
    for kind in options.levels:
        require_text(dataset, kind)
    folder = model_folder(vectors.model)
    check_vectors(folder, vectors, options)
    settings = store_settings(to_path(dataset), vectors)
    settings |= {"version": VERSION, "model_sha256": weights_sha256(folder)}
    share = {"rank": options.rank, "world_size": options.world_size}
    writers = [
        StoreWriter(Path(store) / level, settings | {"level": level}, **share)
        for level in options.levels
    ]
    results = {w.folder.name: counts_of(w) for w in writers if w.is_complete}
    open_writers = [writer for writer in writers if not writer.is_complete]
    if not open_writers:
        return EncodeResult(results, None)
    template = load_template(settings["template"])
    tokenizer = load_tokenizer(folder, options.trust_remote_code)
    tokens = PromptTokenizer(tokenizer, vectors.max_tokens)
    jobs = []
    for writer in open_writers:
        level = writer.folder.name
        prompts = level_prompts(level, dataset, template, tokens, **share)
        previous = options.previous / level if options.previous else None
        jobs.append(LevelJob(writer, prompts, previous))
    counter = SpeedCounter(sum(len(job.prompts) for job in jobs), on_progress)
    counter.add(sum(len(job.prompts) - job.remaining.height for job in jobs), 0)
    needs_model = any(job.remaining.height for job in jobs)
    encoder = load_encoder(folder, vectors, options) if needs_model else None
    for job in jobs:
        level = job.writer.folder.name
        keep_end = f"\n{template.user_question}" if level == "user" else ""
        results[level] = job.run(
            encoder, options, counter, system=template.system, keep_end=keep_end
        )
    speed = counter.speed(encoder, vectors.dtype) if encoder else None
    return EncodeResult({level: results[level] for level in options.levels}, speed)


def check_vectors(folder: Path, vectors: VectorSettings, options: EncodeOptions) -> None:
    """Checks that a model can encode prompts as the settings say, see `check_model`."""
    answer = vectors.answer_tokens if vectors.pooling == "generate" else 0
    trust = options.trust_remote_code
    check_model(folder, vectors.max_tokens, answer, trust_remote_code=trust)


def load_encoder(
    folder: Path, vectors: VectorSettings, options: EncodeOptions, *, is_chat: bool = True
) -> FrozenEncoder:
    """Loads the frozen model on the device of the options."""
    return FrozenEncoder.load(
        folder,
        pooling=vectors.pooling,
        layer=vectors.layer,
        dtype=vectors.dtype,
        trust_remote_code=options.trust_remote_code,
        max_tokens=vectors.max_tokens,
        answer_tokens=vectors.answer_tokens,
        is_chat=is_chat,
        device=options.device,
    )


def counts_of(writer: StoreWriter) -> dict[str, int]:
    """Returns the counts of a level that an earlier run completed."""
    manifest = KnowledgeStore.open(writer.folder, verify=False).manifest
    counts = {name: int(manifest[name]) for name in ("keys", "no_history", "left_out")}
    return counts | {"encoded": 0, "merged": 1}
