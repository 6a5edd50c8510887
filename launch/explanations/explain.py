"""Explains the effect of knowledge and histories in a run, for users and between scenarios."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from msrec.data.io.parquet_files import read_parquet
from msrec.data.llm.knowledge import read_vectors
from msrec.data.llm.neighbours import neighbours, unit_vectors
from msrec.data.llm.store import KEYS, KnowledgeStore
from msrec.data.loading.batch import Batch
from msrec.data.loading.loader import Loader
from msrec.data.loading.split_reader import SplitReader
from msrec.data.schema import Split
from msrec.launch.batch_pipeline import BatchPipeline
from msrec.launch.distributed import Process, process_group
from msrec.launch.encoding.run_prompts import prompts_by_key
from msrec.launch.evaluation.predict import RunScores
from msrec.launch.explanations.explain_interest import InterestExplainer
from msrec.launch.explanations.explanation_file import (
    FOLDER,
    SCENARIOS_FILE,
    LayerDistance,
    Matrix,
    Neighbour,
    RowInterest,
    RowScore,
    ScenarioExplanation,
    UserExplanation,
    save_explanation,
    user_file,
)
from msrec.launch.loaders import build_loader
from msrec.launch.trained_run import load_run_config, open_run, unwrapped
from msrec.model.layers.generated_linear import FactoredLinear, GeneratedLinear
from msrec.model.meta import ScenarioMeta, UserMeta
from msrec.model.ranker import DenseArch

SAMPLED_USERS = 2_000
"""Users whose generated layers are compared with the layers of the explained user."""
NEAREST = 8
"""Number of neighbours of a user."""
BEST_ROWS = 3
"""Rows of a user, those with the best scores, whose attention is shown."""


def explanations(
    run_dir: Path,
    users: Sequence[str],
    *,
    scenarios: bool,
    split: Split = "test",
    label: str | None = None,
) -> Iterator[UserExplanation | ScenarioExplanation]:
    """Yields the explanation of each user, then of the scenarios, saved in the run folder.

    Args:
        run_dir: a run folder.
        users: raw keys.
        scenarios: whether to compare the scenarios.
        split: the split whose rows are scored.
        label: label whose scores are explained; None is the first label of the run.

    Raises:
        FileNotFoundError, ValueError: see `Explainer`; or neither users nor scenarios are given.
    """
    if not users and not scenarios:
        raise ValueError("explain must be asked something: --user KEY, --scenario, or both.")
    with process_group("cpu") as process:
        explainer = Explainer(run_dir, process, split, label)
        for key in users:
            user = explainer.user(key)
            save_explanation(user, user_file(run_dir, key))
            yield user
        if scenarios:
            compared = explainer.scenarios()
            save_explanation(compared, run_dir / FOLDER / SCENARIOS_FILE)
            yield compared


class Explainer:
    """A run's best checkpoint on one process, ready to explain users and scenarios.

    Raises:
        FileNotFoundError: there is no run or no committed checkpoint.
        ValueError: the run uses neither knowledge of users or scenarios nor interest blocks, or
            does not learn the label.
    """

    def __init__(
        self, run_dir: Path, process: Process, split: Split = "test", label: str | None = None
    ) -> None:
        config = load_run_config(run_dir)
        self._has_knowledge = config.meta.user or config.meta.scenario
        if not self._has_knowledge and not config.interest.enabled:
            raise ValueError(
                f"{run_dir} must have meta.user=true, meta.scenario=true or interest.enabled=true, "
                "so that there is something to explain; it has none of them."
            )
        run = open_run(run_dir, process, config=config)
        self.config, self.schema, self.knowledge = config, run.schema, run.knowledge
        self.split: Split = split
        self.model = run.model.eval()
        self._pipeline = BatchPipeline(self.model, process)
        self._scores = RunScores(run)
        if label is not None and label not in self._scores.labels:
            raise ValueError(
                f"--label must be a label of {run_dir} ({', '.join(self._scores.labels)}); got "
                f"{label!r}."
            )
        self._label = 0 if label is None else self._scores.labels.index(label)
        self.dense_arch: DenseArch = unwrapped(self.model).ranker.over
        self.loader: Loader = build_loader(
            self.config, split, process, self.knowledge, 1, shuffle=False
        )

    def user(self, key: str) -> UserExplanation:
        """Explains one user, given by the raw key.

        Raises:
            ValueError: the dataset has no such user.
        """
        dataset = self.config.dataset
        # Not by polars, whose threads do not survive a fork: ranks of the tests are forked.
        keys = read_parquet(dataset / "users.parquet", ["user_key"])["user_key"]
        matches = np.flatnonzero(pc.equal(keys.cast(pa.string()), key).to_numpy())
        if not len(matches):
            raise ValueError(
                f"{dataset} must hold the user {key!r}; it is not among {len(keys):,} users."
            )
        user = int(matches[0])
        training_users = self._reader("train").read_good()["user"]
        text, nearest, row = None, list[Neighbour](), -1
        folder = self.config.llm.store
        if self._has_knowledge and folder is not None and (folder / "user").is_dir():
            store = KnowledgeStore.open(folder / "user")
            row = int(store.rows(keys.slice(user, 1).to_numpy())[0])
            if row >= 0:
                text, nearest = _answer(store, row), _nearest(store, row)
        rows = self._row_scores(user)
        return UserExplanation(
            user=key,
            split=self.split,
            label=self._scores.labels[self._label],
            is_binary=self._scores.tasks[self._label].is_binary,
            prompt=self._user_prompts[key] if self._has_knowledge else None,
            text=text,
            training_rows=int((training_users == user).sum()),
            has_vector=row >= 0,
            nearest=nearest,
            layers=self._layer_distances(user),
            rows=rows,
            interest=self._interest(rows),
        )

    def scenarios(self) -> ScenarioExplanation:
        """Compares the scenarios.

        Raises:
            ValueError: the run has no scenario layers.
        """
        meta = self.dense_arch.scenario_meta
        if meta is None:
            raise ValueError("the run must have meta.scenario=true to compare generated layers.")
        names = [scenario.name for scenario in self.schema.scenarios]
        assert self.config.llm.store is not None
        store = KnowledgeStore.open(self.config.llm.store / "scenario")
        rows = store.rows(np.array(names))
        states = read_vectors(store, rows).float().numpy()
        prompts = prompts_by_key(self.config, "scenario")
        with torch.no_grad():
            codes = meta.reducer(meta.get_buffer("knowledge")).numpy()
        layers = {}
        if len(names) > 1:
            layers = {name: codes @ _weights(layer) for name, layer in _generated_layers(meta)}
        return ScenarioExplanation(
            names=names,
            prompts=[prompts[name] for name in names],
            texts=[_answer(store, int(row)) for row in rows],
            states=_cosines(states),
            states_centred=_cosines(states - states.mean(axis=0)),
            layers={name: _cosines(w) for name, w in layers.items()},
            layers_centred={name: _cosines(w - w.mean(axis=0)) for name, w in layers.items()},
        )

    @cached_property
    def _user_prompts(self) -> dict[str, str]:
        """Prompts of all users by key; they can only be made together."""
        return prompts_by_key(self.config, "user")

    def _reader(self, split: Split) -> SplitReader:
        """Returns a reader of the users of a split."""
        dataset, faults = self.config.dataset, self.config.faults
        return SplitReader(dataset, self.schema, split, columns=["user"], faults=faults)

    def _row_scores(self, user: int) -> list[RowScore]:
        rows = np.flatnonzero(self._reader(self.split).read()["user"] == user)
        if not len(rows):
            return []
        batch = self.loader.batch_of(rows)
        scores = {"score": self._score(batch)}
        has_user = self.dense_arch.user_meta is not None
        if has_user:
            scores["without_user"] = self._score(self._with_average_user(batch))
        if self.dense_arch.scenario_meta is not None:
            with _average_scenario(self.dense_arch.scenario_meta):
                scores["without_scenario"] = self._score(batch)
                if has_user:
                    scores["without_both"] = self._score(self._with_average_user(batch))
        titles = self._titles(batch.item.numpy())
        names = [scenario.name for scenario in self.schema.scenarios]
        label = batch.label[:, self._label]
        return [
            RowScore(
                row_id=int(row),
                item=titles[at],
                scenario=names[int(batch.scenario[at])],
                label=None if torch.isnan(label[at]) else float(label[at]),
                **{variant: float(values[at]) for variant, values in scores.items()},
            )
            for at, row in enumerate(rows)
        ]

    def _interest(self, rows: Sequence[RowScore]) -> list[RowInterest]:
        interest = self.dense_arch.interest
        if interest is None or not rows:
            return []
        explainer = InterestExplainer(
            interest=interest,
            sources=self.config.llm.sources,
            score=self._score,
            titles=self._titles,
            scenarios=[scenario.name for scenario in self.schema.scenarios],
        )
        best = sorted(rows, key=lambda row: -row.score)[:BEST_ROWS]
        return explainer.rows(self.loader.batch_of(np.array([row.row_id for row in best])), best)

    def _score(self, batch: Batch) -> torch.Tensor:
        scores = self._scores.array(self._pipeline.progress(iter([batch])))
        return torch.from_numpy(scores[:, self._label])

    def _with_average_user(self, batch: Batch) -> Batch:
        """Returns the batch with the mean vector for every user."""
        assert self.dense_arch.user_meta is not None
        known = batch.user_vectors
        mean = self.dense_arch.user_meta.reducer.get_buffer("mean").to(known.vectors.dtype)
        vectors = mean.expand(len(known.ids), -1).contiguous()
        average = known._replace(vectors=vectors, has=torch.ones_like(known.has))
        return dataclasses.replace(batch, user_vectors=average)

    def _layer_distances(self, user: int) -> list[LayerDistance]:
        meta, store = self.dense_arch.user_meta, self.knowledge.user
        if meta is None or store is None:
            return []
        step = max(self.schema.num_users // SAMPLED_USERS, 1)
        sample = np.arange(0, self.schema.num_users, step)
        with torch.no_grad():
            vectors, has = store.gather(torch.from_numpy(np.concatenate([[user], sample])))
            codes = meta.reducer(vectors, has).numpy()
        own, others = codes[:1], codes[1:]
        average = others.mean(axis=0, keepdims=True)
        distances = []
        for name, layer in _generated_layers(meta):
            weights = _weights(layer)
            gram = weights @ weights.T
            distance = _norms(own - average, gram)[0]
            rank = float((_norms(others - average, gram) < distance).mean())
            relative = float(distance / _norms(average, gram)[0])
            distances.append(LayerDistance(layer=name, distance=relative, rank=rank))
        return distances

    def _titles(self, items: np.ndarray) -> list[str]:
        """Returns the title of each item; the key if it has none."""
        title_column = self.schema.text.item_title
        columns = ["item_key", *([title_column] if title_column else [])]
        table = read_parquet(self.config.dataset / "items.parquet", columns).take(items)
        keys = table["item_key"].cast(pa.string()).to_pylist()
        titles = table[columns[-1]].cast(pa.string()).to_pylist()
        return [title or key for key, title in zip(keys, titles, strict=True)]


@contextmanager
def _average_scenario(meta: ScenarioMeta) -> Iterator[None]:
    """Gives every scenario the mean vector while the context is open."""
    knowledge = meta.get_buffer("knowledge")
    saved = knowledge.clone()
    knowledge.copy_(knowledge.mean(dim=0).expand_as(knowledge))
    try:
        yield
    finally:
        knowledge.copy_(saved)


def _generated_layers(
    meta: UserMeta | ScenarioMeta,
) -> Iterator[tuple[str, GeneratedLinear | FactoredLinear]]:
    for number, layer in enumerate(meta.layers, start=1):
        assert isinstance(layer, GeneratedLinear | FactoredLinear)
        yield f"layer {number}", layer
    if isinstance(meta, ScenarioMeta):
        yield "head", meta.head


def _weights(layer: GeneratedLinear | FactoredLinear) -> np.ndarray:
    """Returns (R + 1, weights and biases); a code times this matrix is the generated layer."""
    parts = [layer.weight.detach().flatten(1), layer.bias.detach()]
    return np.asarray(torch.cat(parts, dim=1).cpu().numpy(), dtype=np.float64)


def _norms(codes: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Returns the norms (n,) of the layers of codes (n, R + 1), without generating the layers."""
    squares = np.einsum("ur,rs,us->u", codes, gram, codes)
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def _cosines(rows: np.ndarray) -> Matrix:
    directions = unit_vectors(rows.astype(np.float64))
    return [[float(value) for value in row] for row in directions @ directions.T]


def _nearest(store: KnowledgeStore, row: int) -> list[Neighbour]:
    order, cosines = neighbours(store, row)
    pairs = zip(order[:NEAREST], cosines, strict=False)
    return [Neighbour(key=str(store.keys[other]), cosine=float(cosine)) for other, cosine in pairs]


def _answer(store: KnowledgeStore, row: int) -> str | None:
    """Returns the answer of the LLM, if the store keeps answers."""
    path = store.path / KEYS
    if "text" not in pq.read_schema(path).names:
        return None
    text: str | None = pq.read_table(path, columns=["text"])["text"][row].as_py()
    return text
