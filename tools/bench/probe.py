"""What the vectors of users with few rows tell of them, beside plain counts of the same rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from msrec.data.io.atomic_files import write_json
from msrec.data.io.parquet_files import parquet_files, scan_parquet
from msrec.data.llm.knowledge import EntityKnowledge
from msrec.data.llm.neighbours import standardised
from msrec.data.llm.store import MANIFEST, KnowledgeStore
from msrec.data.schema import Schema, load_schema
from msrec.tools.bench.harness.report import OUT

FOLDS = 5
"""Of users. The first chooses the penalty, the others are judged."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""scikit-learn's C, from strong to weak."""
COMPONENTS = (16, 64)
"""Principal components that are kept of vectors: fewer can be learned from fewer users."""
SMOOTHING = 10.0
"""Rows at the mean rate that each item has besides its own."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Rows that are judged.

    Shape:
        user, label: (n,).
        feature: (n, values), one-hot.
        base: (n, d), what is known without the user: the item's rate, the scenario, the feature.
    """

    user: Ints
    label: npt.NDArray[np.bool_]
    feature: Floats
    base: Floats


def bench_probe(
    dataset: Path, stores: Sequence[Path], feature: str, few: int, users: int, seed: int = 0
) -> None:
    """Logistic regressions on what is known of users, judged on other users.

    Each reads the item's rate in training, the scenario and the item's `feature`; what it reads of
    the user besides stands in its line, alone and times the feature. Fitted and judged on rows of
    the validation split, which are in no prompt, of users with fewer than `few` training rows; no
    user is on both sides. Test rows are not read.

    Args:
        dataset: a dataset folder.
        stores: knowledge stores, each read as a line; with an item level also the sums of the
            vectors of a user's items, those with label 1 and the others apart.
        feature: a sparse feature of items, single values.
        few: training rows.
        users: users to learn from in the first column, where there are more; the second has all.
        seed: of the folds.

    Raises:
        ValueError: the feature is unknown or has lists, or there are too few such users.
    """
    schema = load_schema(dataset)
    _check_feature(schema, feature)
    train, valid = (_read(dataset, split, schema, feature) for split in ("train", "valid"))
    counts = np.bincount(train["user"].to_numpy(), minlength=schema.num_users)
    chosen = np.flatnonzero((counts > 0) & (counts < few))
    if len(chosen) < 2 * FOLDS:
        raise ValueError(
            f"{dataset} must have {2 * FOLDS} or more users with 1 to {few - 1} training rows; it "
            f"has {len(chosen)}. Raise --few."
        )
    judged = valid.filter(pl.col("user").is_in(chosen))
    values = 1 + max(int(part["feature"].to_numpy().max()) for part in (train, judged))
    one_hot = np.eye(values, dtype=np.float32)
    rows = _rows(train, judged, schema, one_hot)
    known: dict[str, Floats | None] = {"nothing": None}
    known[f"its counts of {feature}"] = _sums(train, one_hot[train["feature"]], schema.num_users)
    for path in stores:
        known |= _of_store(path, dataset, schema, train, chosen)
    fold = np.random.default_rng(seed).integers(0, FOLDS, schema.num_users)
    table = Table(title=f"{len(rows.label):,} validation rows of {len(chosen):,} users, AUC")
    table.add_column("read of the user")
    learners: dict[str, int | None] = {}
    if users < len(chosen) * (FOLDS - 1) // FOLDS:
        learners[f"learned from {users:,} users"] = users
    learners["learned from all others"] = None
    for head in ("numbers", *learners):
        table.add_column(head, justify="right")
    found = {}
    console = Console(width=120)
    for name, of_user in known.items():
        console.print(f"{name} ...", highlight=False)
        scores = [_judged(rows, of_user, chosen, fold, most, seed) for most in learners.values()]
        found[name] = scores
        size = 0 if of_user is None else of_user.shape[1]
        cells = [f"{np.mean(one):.4f} ± {np.std(one, ddof=1):.4f}" for one in scores]
        table.add_row(name, str(size), *cells)
    table.caption = f"± over {FOLDS - 1} folds of users"
    console.print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    facts = {"dataset": str(dataset), "few": few, "users": users, "seed": seed, "auc": found}
    console.print(f"wrote {write_json(OUT / 'probe.json', facts)}")


def _check_feature(schema: Schema, name: str) -> None:
    single = [feature.name for feature in schema.sparse if not feature.multi]
    if name not in single:
        raise ValueError(f"--feature must be one of {', '.join(single)}; got {name!r}.")


def _read(dataset: Path, split: str, schema: Schema, feature: str) -> pl.DataFrame:
    columns = ["user", "item", "scenario"]
    return (
        scan_parquet(parquet_files(dataset / split))
        .select(*columns, feature=feature, label=pl.col(schema.labels[0]) > 0.5)
        .with_columns(pl.col("feature").cast(pl.Int64))
        .collect()
    )


def _rows(train: pl.DataFrame, judged: pl.DataFrame, schema: Schema, one_hot: Floats) -> Rows:
    overall = float(train["label"].mean())  # type: ignore[arg-type]
    clicks = np.bincount(train["item"], train["label"], schema.num_items)
    seen = np.bincount(train["item"], minlength=schema.num_items)
    rate = (clicks + SMOOTHING * overall) / (seen + SMOOTHING)
    logit = np.log(rate / (1 - rate))[judged["item"]]
    feature = one_hot[judged["feature"]]
    scenario = np.eye(schema.num_scenarios, dtype=np.float32)[judged["scenario"]]
    base = np.column_stack([logit.astype(np.float32), scenario, feature])
    user = judged["user"].to_numpy().astype(np.int64)
    return Rows(user, judged["label"].to_numpy(), feature, base)


def _sums(train: pl.DataFrame, of_row: Floats, num_users: int) -> Floats:
    """Sums over each user's training rows, those with label 1 and the others apart.

    Shape:
        of_row: (training rows, d).
        returns: (num_users, 2 * d).
    """
    user, label = train["user"].to_numpy(), train["label"].to_numpy()
    found = np.zeros((2, num_users, of_row.shape[1]), np.float32)
    for part, rows in zip(found, (label, ~label), strict=True):
        np.add.at(part, user[rows], of_row[rows])
    return np.concatenate([*found], axis=1)


def _of_store(
    path: Path, dataset: Path, schema: Schema, train: pl.DataFrame, chosen: Ints
) -> dict[str, Floats]:
    found = {}
    vectors = _vectors(path, dataset, "user", schema.num_users)
    for most in dict.fromkeys(min(most, vectors.shape[1], len(chosen)) for most in COMPONENTS):
        reduced = _components(vectors, chosen, most)
        found[f"{path}, {reduced.shape[1]} components"] = reduced
    if (path / "item" / MANIFEST).is_file():
        items = _vectors(path, dataset, "item", schema.num_items)
        reduced = _components(items, np.arange(len(items)), min(COMPONENTS[0], *items.shape))
        sums = _sums(train, reduced[train["item"].to_numpy()], schema.num_users)
        found[f"{path}, sums of its items'"] = sums
    return found


def _vectors(path: Path, dataset: Path, level: Literal["user", "item"], number: int) -> Floats:
    """(number, H), standardised; zeros where the store has none."""
    store = KnowledgeStore.open(path / level)
    vectors, _ = EntityKnowledge(dataset, level, store).gather(np.arange(number))
    return standardised(store, vectors.float().numpy())


def _components(vectors: Floats, fitted_on: Ints, most: int) -> Floats:
    reduce = PCA(most, random_state=0).fit(vectors[fitted_on])
    found: Floats = reduce.transform(vectors).astype(np.float32)
    return found


def _judged(
    rows: Rows,
    of_user: Floats | None,
    chosen: Ints,
    fold: Ints,
    most: int | None,
    seed: int,
) -> list[float]:
    """AUC of each fold but the first, by a probe that learned from users of the other folds."""
    inputs = _inputs(rows, of_user, chosen)

    def auc(at: int, penalty: float) -> float:
        others = chosen[fold[chosen] != at]
        learn = np.random.default_rng([seed, at]).permutation(others)[:most]
        fit, judge = np.isin(rows.user, learn), fold[rows.user] == at
        probe = LogisticRegression(C=penalty, max_iter=300)
        probe.fit(inputs[fit], rows.label[fit])
        return float(roc_auc_score(rows.label[judge], probe.decision_function(inputs[judge])))

    best = max(PENALTIES, key=lambda penalty: auc(0, penalty))
    return [auc(at, best) for at in range(1, FOLDS)]


def _inputs(rows: Rows, of_user: Floats | None, chosen: Ints) -> Floats:
    """(n, columns): the base, and what is known of the user, alone and times the feature."""
    if of_user is None:
        return rows.base
    known = of_user[rows.user] / of_user[chosen].std()
    products = (rows.feature[:, :, None] * known[:, None, :]).reshape(len(known), -1)
    return np.column_stack([rows.base, known, products])
