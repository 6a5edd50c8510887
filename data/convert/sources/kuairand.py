"""KuaiRand as published: logs of one short-video app under fifteen tabs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from msrec.data.convert.raw_tables import ID_FEATURES, Chunk, Feature, RawTables
from msrec.data.convert.sources.text_reader import TextReader, raw_file, required_files
from msrec.data.labels import LabelOptions
from msrec.data.schema import Scenario, TextFields

SITE = "https://kuairand.com"
VERSIONS = ("1k", "pure", "27k")
NUM_TABS = 15
PUBLISHED_TABS = (0, 1, 2, 4, 6)
SIGNALS = ("is_click", "is_like", "is_follow", "is_comment", "is_forward", "long_view")
"""Columns that are labels, under their names without `is_`."""
LABELS = (*SIGNALS, "is_hate")
"""Columns that `label` may name."""
PLAY_TIME, PLAY_TIME_MS = "play_time", "play_time_ms"
LONGEST_PLAY_S = 600.0
"""Seconds to which play times are clipped in training: longer ones are mostly videos that were left
running, and the squared error of a few hours would outweigh thousands of usual plays."""
PLAY_TIME_OPTIONS = LabelOptions(
    kind="regression", transform="log", clip=(0.0, LONGEST_PLAY_S), optional=True
)
PUBLISHED = {
    "KuaiRand-1K, Scenario-Wise-Rec, arXiv 2412.17374": {
        "tab 0": (2_407_352, 961, 1_596_491),
        "tab 1": (7_760_237, 991, 2_741_383),
        "tab 2": (895_385, 171, 332_210),
        "tab 4": (402_366, 832, 547_908),
        "tab 6": (183_403, 832, 43_106),
    },
}
USER_TEXTS = (
    "user_active_degree",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)
USER_NUMBERS = (
    *("is_lowactive_period", "is_live_streamer", "is_video_author"),
    *(f"onehot_feat{i}" for i in range(18)),
)
ITEM_TEXTS = ("video_type", "upload_type")
ITEM_NUMBERS = ("author_id", "music_type", "visible_status")
FEATURES = (
    *ID_FEATURES,
    *(Feature(name, "user") for name in (*USER_TEXTS, *USER_NUMBERS)),
    *(Feature(name, "item") for name in (*ITEM_TEXTS, *ITEM_NUMBERS)),
    Feature("seconds", "item"),
    Feature("tag", "item", "multi"),
)


def read_kuairand(
    folder: Path, reader: TextReader, tabs: Sequence[int] = PUBLISHED_TABS, label: str = "is_click"
) -> RawTables:
    """Reads the standard logs, the user features and the basic video features of one version.

    Scenarios are tabs; rows of other tabs are left out and counted. The logs of randomly exposed
    videos and the statistics per video are not read: the statistics cover the test period.
    `seconds` is the length of the video, rounded down to a power of two.

    The labels are `label`, then the other signals that the logs have, then `play_time` in seconds,
    a regression label with the transform log, clipped to `LONGEST_PLAY_S` in training; every row
    has all of them, and a play time may be missing.

    Args:
        folder: that of the download, or its `data`.
        reader: reads the files.
        tabs: numbers from 0 to 14.
        label: the signal that is the first label, by which models are judged.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a tab or label is unknown, several versions are in the folder, a column is
            missing or a row is bad; names file, column and row.

    Source:
        Gao et al., CIKM 2022 (arXiv 2208.08696); files as described on kuairand.com.
    """
    unknown = sorted(set(tabs) - set(range(NUM_TABS)))
    if unknown or not tabs or len(set(tabs)) < len(tabs):
        raise ValueError(
            f"tabs must be different numbers from 0 to {NUM_TABS - 1}; got {list(tabs)}. "
            f"Scenario-Wise-Rec has {','.join(map(str, PUBLISHED_TABS))}."
        )
    if label not in LABELS:
        raise ValueError(f"label must be one of {', '.join(LABELS)}; got {label!r}.")
    data = folder / "data" if (folder / "data").is_dir() else folder
    version, logs = _version(data)
    labels = _labels(logs[0], label, reader)
    absent = [name for name in (*SIGNALS, PLAY_TIME_MS) if name not in labels.values()]
    names = [f"user_features_{version}.csv", f"video_features_basic_{version}.csv"]
    title = f"KuaiRand-{version} with {logs[0].name}"
    users, items = required_files(data, title, names, SITE)
    return RawTables(
        name=f"kuairand-{version}",
        description="A short-video app; its pages, called tabs, show recommended videos.",
        interactions=_interactions(logs, list(tabs), labels, reader),
        users=_users(users, reader),
        items=_items(items, reader),
        scenarios=[
            Scenario(
                name=f"tab {tab}", description=f"Page {tab} of the app; its name is not known."
            )
            for tab in tabs
        ],
        features=FEATURES,
        labels=tuple(labels),
        label_options={PLAY_TIME: PLAY_TIME_OPTIONS} if PLAY_TIME in labels else {},
        timestamp="time_ms",
        timestamp_unit="ms",
        text=TextFields(
            item_attributes=["tags"],
            user_attributes=["user_active_degree", "register_days_range", "follow_user_num_range"],
        ),
        files={"interactions": str(data), "users": str(users), "items": str(items)},
        notes=(
            f"logs: {', '.join(path.name for path in logs)}",
            f"labels: {', '.join(labels)}",
            *([f"no such label in the logs: {', '.join(absent)}"] if absent else []),
        ),
        unknown_keys="add",
        published=PUBLISHED if version == "1k" else {},
        differs_from_published=_difference(version, tabs, label),
    )


def _version(data: Path) -> tuple[str, list[Path]]:
    """Returns the version in the folder and its logs."""
    logs: dict[str, list[Path]] = {}
    for version in VERSIONS:
        found = data.glob(f"log_standard_*_{version}*.csv*")
        names = sorted({path.name.removesuffix(".gz") for path in found})
        paths = [raw_file(data, name) for name in names if name.endswith(".csv")]
        logs[version] = [path for path in paths if path is not None]
    versions = [version for version, paths in logs.items() if paths]
    if not versions:
        raise FileNotFoundError(
            f"{data} must hold logs such as log_standard_4_08_to_4_21_1k.csv (1k, pure or 27k), "
            f"from {SITE}; it holds none."
        )
    if len(versions) > 1:
        raise ValueError(
            f"{data} must hold the logs of one version; it holds {', '.join(versions)}. Move the "
            "others away."
        )
    return versions[0], logs[versions[0]]


def _difference(version: str, tabs: Sequence[int], label: str) -> str:
    if version != "1k":
        return f"they are of KuaiRand-{version}, the published ones of KuaiRand-1K"
    if sorted(tabs) != list(PUBLISHED_TABS):
        return f"the published tabs are {','.join(map(str, PUBLISHED_TABS))}"
    return "" if label == "is_click" else "the published label is is_click"


def _labels(log: Path, first: str, reader: TextReader) -> dict[str, str]:
    """Returns the names of the labels, the first one first, with their columns in a log."""
    header = reader.header(log)
    others = [name for name in (*SIGNALS, PLAY_TIME_MS) if name in header and name != first]
    names = {PLAY_TIME_MS: PLAY_TIME}
    return {names.get(name, name.removeprefix("is_")): name for name in (first, *others)}


def _interactions(
    logs: Sequence[Path], tabs: list[int], labels: Mapping[str, str], reader: TextReader
) -> Iterator[Chunk]:
    columns: dict[str, Any] = dict.fromkeys(("user_id", "video_id", "time_ms", "tab"), int)
    columns |= dict.fromkeys(labels.values(), int)
    values = {name: pl.col(column) for name, column in labels.items()}
    if PLAY_TIME in labels:
        columns[PLAY_TIME_MS] = int | None
        values[PLAY_TIME] = pl.col(PLAY_TIME_MS) / 1000
    is_other = ~pl.col("tab").is_in(tabs)
    for path in logs:
        for frame in reader.csv(path, columns):
            rows = reader.row_filter.exclude(frame, is_other, "rows of other tabs").select(
                *("row", "time_ms"),
                user_key="user_id",
                item_key="video_id",
                **values,
                scenario=pl.col("tab").replace_strict(tabs, list(range(len(tabs)))),
            )
            yield Chunk(str(path), rows)


def _users(path: Path, reader: TextReader) -> pl.DataFrame:
    columns = {"user_id": int, **dict.fromkeys(USER_TEXTS, str | None)}
    columns |= dict.fromkeys(USER_NUMBERS, int | None)
    return reader.table(reader.csv(path, columns), path, "user_id", "user_key")


def _items(path: Path, reader: TextReader) -> pl.DataFrame:
    columns = {"video_id": int, **dict.fromkeys((*ITEM_TEXTS, "tag"), str | None)}
    columns |= dict.fromkeys(("video_duration", *ITEM_NUMBERS), int | None)
    seconds = pl.col("video_duration") // 1000
    tags = pl.col("tag").str.extract_all(r"\d+")
    frames = (
        frame.with_columns(
            pl.col(ITEM_TEXTS).cast(pl.Categorical),
            seconds=pl.when(seconds > 0).then(2 ** seconds.log(2).floor()).cast(pl.Int64),
            tag=tags.cast(pl.List(pl.Int32)),
            tags=tags.list.eval("tag " + pl.element()).list.join(", ").cast(pl.Categorical),
        ).drop("video_duration")
        for frame in reader.csv(path, columns)
    )
    return reader.table(frames, path, "video_id", "item_key")
