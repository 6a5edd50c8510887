"""Features of rows from the history of their user, for a model of boosted trees.

Every feature of a row is computed from events with a strictly smaller time, those that
`msrec train` reads with the same `sequence.protocol`: similarity of the candidate to the earlier
items by item vectors and by words, counts of the user's events, and counts of the item's events.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from msrec.data.histories.index import HistoryIndex
from msrec.data.histories.reader import HistoryReader
from msrec.data.io.parquet_files import read_parquet
from msrec.data.io.paths import AnyPath
from msrec.data.llm.item_vectors import ItemVectors
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import SPLITS, Schema, Split, load_schema

CHUNK_ROWS = 4096
"""Rows whose features are computed at once."""
HALF_LIVES = (2.0, 8.0)
"""Events after which an older event has half the weight, in means that decay with age."""
MAX_SCENARIOS = 20
"""Most scenarios for which the user's events are counted one by one."""
Floats = npt.NDArray[np.float32]
Longs = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FeatureTable:
    """Features and labels of the rows of a split.

    Shape:
        values: (N, F), float32; NaN where a feature is not defined, such as without history.
        names: F names.
        label: (N,), float32.
        user, scenario: (N,), int64.
    """

    values: Floats
    names: list[str]
    label: Floats
    user: Longs
    scenario: Longs


@dataclass(frozen=True)
class _Events:
    """Events of the rows of a chunk, newest last; see `HistoryEvents`.

    Shape:
        candidate: (B,), items of the rows.
        items: (B, K), items of the events, 0 in empty places.
        mask, is_same, is_positive: (B, K): events, events of the row's scenario, of label 1.
    """

    candidate: Longs
    items: Longs
    mask: Mask
    is_same: Mask
    is_positive: Mask


class HistoryFeatures:
    """Features of the rows of a dataset.

    Args:
        dataset: the dataset folder.
        index: its histories.
        sources: item vectors.
        max_len: newest events that similarities read; counts read all earlier events.
        popularity: whether events of the item are counted.
    """

    def __init__(
        self,
        dataset: AnyPath,
        index: HistoryIndex,
        sources: Sequence[ItemVectors],
        max_len: int,
        *,
        popularity: bool,
    ) -> None:
        self.schema = load_schema(dataset)
        self._index, self._max_len = index, max_len
        self._vectors = {each.name: _all_vectors(each) for each in sources}
        self._has_negatives = index.manifest.events == "all"
        self._rows = {split: _read(dataset, self.schema, split) for split in SPLITS}
        self._words = item_words(dataset, self.schema)
        self._item_counts = self._count_items() if popularity else {}

    def table(self, split: Split) -> FeatureTable:
        """Returns the features of all rows of a split."""
        rows = self._rows[split]
        columns = {name: rows[name] for name in ("scenario", *self.schema.dense)}
        columns |= self._user_counts(split)
        columns |= {name: counts[split] for name, counts in self._item_counts.items()}
        starts = range(0, len(rows["user"]), CHUNK_ROWS)
        chunks = [self._similarities(split, slice(start, start + CHUNK_ROWS)) for start in starts]
        columns |= {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        return FeatureTable(
            values=np.stack([column.astype(np.float32) for column in columns.values()], axis=1),
            names=list(columns),
            label=rows["label"],
            user=rows["user"],
            scenario=rows["scenario"],
        )

    def _similarities(self, split: Split, rows: slice) -> dict[str, Floats]:
        """Returns the features of similarity to the earlier items of some rows."""
        events = self._events(split, rows)
        features: dict[str, Floats] = {}
        for source, vectors in self._vectors.items():
            products = vectors[events.items] @ vectors[events.candidate, :, np.newaxis]
            features |= self._summaries(f"similarity {source}", products[:, :, 0], events)
        for column, words in self._words.items():
            features |= self._summaries(f"words {column}", word_overlap(words, events), events)
        return features

    def _summaries(self, name: str, values: Floats, events: _Events) -> dict[str, Floats]:
        """Returns largest, mean, newest and decaying mean of (B, K) similarities, and by group."""
        summaries = {
            f"{name}, last": np.where(events.mask[:, -1], values[:, -1], np.nan),
            **_largest_and_mean(name, values, events.mask),
            **_largest_and_mean(f"{name}, same scenario", values, events.mask & events.is_same),
        }
        if self._has_negatives:
            positive = events.mask & events.is_positive
            negative = events.mask & ~events.is_positive
            summaries |= _largest_and_mean(f"{name}, positive", values, positive)
            summaries |= _largest_and_mean(f"{name}, negative", values, negative)
        age = np.arange(values.shape[1] - 1, -1, -1)
        for half_life in HALF_LIVES:
            weights = 0.5 ** (age / half_life) * events.mask
            summaries[f"{name}, recency {half_life:g}"] = _mean(values, weights)
        return {key: value.astype(np.float32) for key, value in summaries.items()}

    def _events(self, split: Split, rows: slice) -> _Events:
        columns = self._rows[split]
        user, item, scenario = (columns[name][rows] for name in ("user", "item", "scenario"))
        numbers = np.arange(len(columns["user"]))[rows]
        reader = HistoryReader(self._index, self._max_len, split)
        events = reader.events(numbers, user, item, None)
        bag = events.bag.numpy()
        of_event = events.scenario.numpy()[bag]
        ids = np.append(events.items.values().numpy(), np.int32(0)).astype(np.int64)
        return _Events(
            candidate=item,
            items=ids[events.events.numpy()[bag]],
            mask=of_event >= 0,
            is_same=of_event == scenario[:, None],
            is_positive=events.label.numpy()[bag] > 0,
        )

    def _user_counts(self, split: Split) -> dict[str, npt.NDArray[Any]]:
        """Returns counts of the user's earlier events: all, positive, by scenario."""
        rows, index = self._rows[split], self._index
        start, end = index.starts[rows["user"]], np.asarray(index.ends[split])

        def count(is_counted: Mask) -> Longs:
            before = np.concatenate([[0], np.cumsum(is_counted)])
            counts: Longs = before[end] - before[start]
            return counts

        scenarios = np.asarray(index.scenarios)
        is_positive = np.asarray(index.labels) > 0
        counts = {"user events": end - start}
        if self._has_negatives:
            counts["user positives"] = count(is_positive)
        same = np.zeros_like(end)
        same_positive = np.zeros_like(end)
        for number, scenario in enumerate(self.schema.scenarios):
            of_scenario = scenarios == number
            counted, is_row = count(of_scenario), rows["scenario"] == number
            same = np.where(is_row, counted, same)
            if self._has_negatives:
                same_positive = np.where(is_row, count(of_scenario & is_positive), same_positive)
            if len(self.schema.scenarios) <= MAX_SCENARIOS:
                counts[f"user events in {scenario.name}"] = counted
        counts["user events in the row's scenario"] = same
        if self._has_negatives:
            counts["user positives in the row's scenario"] = same_positive
        features: dict[str, npt.NDArray[Any]] = dict(counts)
        features["share of the row's scenario"] = _ratio(same, counts["user events"])
        if self._has_negatives:
            features["user rate"] = _ratio(counts["user positives"], counts["user events"])
        return features

    def _count_items(self) -> dict[str, dict[Split, npt.NDArray[Any]]]:
        """Returns counts of the item's earlier events: feature -> split -> values of its rows."""
        item, scenario, label, time = (
            np.concatenate([self._rows[split][name] for split in SPLITS])
            for name in ("item", "scenario", "label", "time")
        )
        sizes = [len(self._rows[split]["item"]) for split in SPLITS]
        if self._index.manifest.order == "rows":
            time = np.arange(len(time))
        is_event = np.ones(len(item), np.bool_) if self._has_negatives else label > 0
        if self._index.manifest.protocol == "frozen":
            is_event[sizes[0] :] = False
        counts = {
            "item events": earlier_counts(item, time, is_event),
            "item events in the row's scenario": earlier_counts(
                item * len(self.schema.scenarios) + scenario, time, is_event
            ),
        }
        features: dict[str, npt.NDArray[Any]] = dict(counts)
        if self._has_negatives:
            positives = earlier_counts(item, time, is_event & (label > 0))
            features["item rate"] = _ratio(positives, counts["item events"])
        ends = np.cumsum(sizes)[:-1]
        return {
            name: dict(zip(SPLITS, np.split(values, ends), strict=True))
            for name, values in features.items()
        }


def _all_vectors(source: ItemVectors) -> Floats:
    return np.concatenate([vectors.astype(np.float32) for _, vectors in source.chunks()])


def earlier_counts(key: Longs, time: Longs, is_counted: Mask) -> Longs:
    """Returns the number of counted rows with the key and a strictly smaller time, (N,).

    Example:
        >>> key, time = np.array([1, 1, 1, 2]), np.array([5, 7, 7, 9])
        >>> earlier_counts(key, time, np.ones(4, bool)).tolist()
        [0, 1, 1, 0]
    """
    order = np.lexsort((time, key))
    keys, times, counted = key[order], time[order], is_counted[order]
    before: Longs = np.cumsum(counted) - counted
    is_new_key = np.diff(keys, prepend=keys[:1] - 1) != 0
    is_new_time = is_new_key | (np.diff(times, prepend=times[:1] - 1) != 0)
    # Rows with the same time have the count of the first of them; each key starts at 0.
    of_time: Longs = before[np.flatnonzero(is_new_time)][np.cumsum(is_new_time) - 1]
    of_key: Longs = before[np.flatnonzero(is_new_key)][np.cumsum(is_new_key) - 1]
    counts = np.empty(len(key), np.int64)
    counts[order] = of_time - of_key
    return counts


def item_words(dataset: AnyPath, schema: Schema) -> dict[str, csr_matrix]:
    """Returns, per text column of the items, which words each item has: (num_items, W), 0 or 1.

    Columns without a word are left out.
    """
    title = [schema.text.item_title] if schema.text.item_title else []
    words = {}
    for column in dict.fromkeys([*title, *schema.text.item_attributes]):
        texts = read_parquet(dataset / "items.parquet", [column])[column].cast(pa.string())
        vectorizer = CountVectorizer(binary=True, token_pattern=r"\w+", dtype=np.float32)
        try:
            words[column] = vectorizer.fit_transform(text or "" for text in texts.to_pylist())
        except ValueError:  # no word in any text
            continue
    return words


def word_overlap(words: csr_matrix, events: _Events) -> Floats:
    """Returns shared words / words of both, of the candidate and each event, (B, K)."""
    shape = events.items.shape
    candidate, event = np.repeat(events.candidate, shape[1]), events.items.ravel()
    sizes = np.asarray(words.sum(axis=1)).ravel()
    overlap = np.zeros(len(event), np.float32)
    real = np.flatnonzero(events.mask.ravel())
    candidate, event = candidate[real], event[real]
    shared = np.asarray(words[candidate].multiply(words[event]).sum(axis=1)).ravel()
    overlap[real] = shared / np.maximum(sizes[candidate] + sizes[event] - shared, 1)
    return overlap.reshape(shape)


def _largest_and_mean(name: str, values: Floats, mask: Mask) -> dict[str, Floats]:
    largest = np.where(mask, values, -np.inf).max(axis=1)
    return {
        f"{name}, max": np.where(mask.any(axis=1), largest, np.nan),
        f"{name}, mean": _mean(values, mask.astype(np.float32)),
    }


def _mean(values: Floats, weights: npt.NDArray[Any]) -> Floats:
    """Returns weighted means of rows, NaN for a row without weight."""
    total = weights.sum(axis=1)
    means: Floats = np.where(
        total > 0, (values * weights).sum(axis=1) / np.maximum(total, 1e-12), np.nan
    )
    return means


def _ratio(part: Longs, whole: Longs) -> Floats:
    ratio: Floats = np.where(whole > 0, part / np.maximum(whole, 1), np.nan).astype(np.float32)
    return ratio


def _read(dataset: AnyPath, schema: Schema, split: Split) -> dict[str, npt.NDArray[Any]]:
    label = schema.labels[0]
    time = [schema.timestamp] if schema.timestamp else []
    names = ["user", "item", "scenario", label, *schema.dense, *time]
    columns = SplitReader(dataset, schema, split, names).read()
    rows: dict[str, npt.NDArray[Any]] = {
        name: columns[name].astype(np.int64) for name in ("user", "item", "scenario")
    }
    rows |= {name: columns[name] for name in schema.dense}
    rows["label"] = columns[label].astype(np.float32)
    rows["time"] = columns[schema.timestamp] if schema.timestamp else np.zeros_like(rows["user"])
    return rows


def feature_tables(features: HistoryFeatures) -> Iterator[tuple[Split, FeatureTable]]:
    """Yields the features of each split."""
    for split in SPLITS:
        yield split, features.table(split)
