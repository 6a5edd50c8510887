"""What the knowledge does in a trained run: for one user's rows, and between the scenarios."""

import dataclasses
from collections.abc import Iterator
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
from msrec.launch.build import build_loader
from msrec.launch.distributed import Process
from msrec.launch.encoding.run_prompts import prompts_by_key
from msrec.launch.evaluation.explanation_file import (
    WAYS,
    LayerDistance,
    Neighbour,
    RowScore,
    ScenarioExplanation,
    UserExplanation,
)
from msrec.launch.trained_run import load_run_config, restore, unwrapped
from msrec.model.layers.generated_linear import GeneratedLinear
from msrec.model.meta import ScenarioMeta, UserMeta
from msrec.model.ranker import DenseArch, Outcome

SAMPLE = 2_000
"""Users whose generated layers a user's one is compared with."""
NEAREST = 8


class Explainer:
    """A run's best checkpoint on one process, ready to be asked.

    Raises:
        FileNotFoundError: there is no run or no committed checkpoint.
        ValueError: the run uses no knowledge of users or scenarios.
    """

    def __init__(self, run_dir: Path, process: Process, split: Split = "test") -> None:
        config = load_run_config(run_dir)
        if not (config.meta.user or config.meta.scenario):
            raise ValueError(
                f"{run_dir} must have meta.user=true or meta.scenario=true, so that there is "
                "knowledge to explain; it has neither."
            )
        run = restore(run_dir, process)
        self.config, self.schema, self.knowledge = config, run.schema, run.knowledge
        self.split: Split = split
        self.model = run.model.eval()
        self.over: DenseArch = unwrapped(self.model).ranker.over
        self._loader: Loader = build_loader(
            self.config, split, process, self.knowledge, 1, shuffle=False
        )

    def user(self, key: str) -> UserExplanation:
        """Explain one user, by raw key.

        Raises:
            ValueError: the data set has no such user.
        """
        dataset, config = self.config.dataset, self.config
        # Not by polars, whose threads do not survive a fork: ranks of the tests are forked.
        keys = read_parquet(dataset / "users.parquet", ["user_key"])["user_key"]
        found = np.flatnonzero(pc.equal(keys.cast(pa.string()), key).to_numpy())
        if not len(found):
            raise ValueError(
                f"{dataset} must hold the user {key!r}; it is not among {len(keys):,} users."
            )
        index = int(found[0])
        seen = self._files("train").read_good()["user"]
        text, nearest, row = None, list[Neighbour](), -1
        if config.llm.store is not None and (config.llm.store / "user").is_dir():
            store = KnowledgeStore.open(config.llm.store / "user")
            row = int(store.rows(keys.slice(index, 1).to_numpy())[0])
            if row >= 0:
                text = _answer(store, row)
                order, cosines = neighbours(store, row)
                pairs = zip(order[:NEAREST], cosines, strict=False)
                nearest = [Neighbour(key=str(store.keys[r]), cosine=float(c)) for r, c in pairs]
        return UserExplanation(
            user=key,
            split=self.split,
            prompt=self._user_prompts[key],
            text=text,
            training_rows=int((seen == index).sum()),
            has_vector=row >= 0,
            nearest=nearest,
            layers=self._distances(index),
            rows=self._rows(index),
        )

    def scenarios(self) -> ScenarioExplanation:
        """Compare the scenarios.

        Raises:
            ValueError: the run has no scenario layers.
        """
        meta = self.over.scenario_meta
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
        weights = {name: codes @ _flat(layer) for name, layer in _layers(meta) if len(names) > 1}
        return ScenarioExplanation(
            names=names,
            prompts=[prompts[name] for name in names],
            texts=[_answer(store, int(row)) for row in rows],
            states=_cosines(states),
            states_centred=_cosines(states - states.mean(axis=0)),
            layers={name: _cosines(w) for name, w in weights.items()},
            layers_centred={n: _cosines(w - w.mean(axis=0)) for n, w in weights.items()},
        )

    @cached_property
    def _user_prompts(self) -> dict[str, str]:
        """Made for all users at once, whoever is asked for."""
        return prompts_by_key(self.config, "user")

    def _rows(self, user: int) -> list[RowScore]:
        users = self._files(self.split).read()["user"]
        rows = np.flatnonzero(users == user)
        if not len(rows):
            return []
        batch = self._loader.batch_of(rows)
        has_user = self.over.user_meta is not None
        has_scenario = self.over.scenario_meta is not None
        score = self._score(batch)
        without_user = self._score(self._average_user(batch)) if has_user else None
        without_scenario = without_both = None
        if has_scenario:
            with _average_scenario(self.over.scenario_meta):
                without_scenario = self._score(batch)
                without_both = self._score(self._average_user(batch)) if has_user else None
        titles = self._titles(batch.item.numpy())
        names = [scenario.name for scenario in self.schema.scenarios]
        ways = (without_user, without_scenario, without_both)
        return [
            RowScore(
                row_id=int(rows[at]),
                item=titles[at],
                scenario=names[int(batch.scenario[at])],
                label=float(batch.label[at, 0]),
                score=float(score[at]),
                **{
                    name: None if way is None else float(way[at])
                    for name, way in zip(list(WAYS)[1:], ways, strict=True)
                },
            )
            for at in range(len(rows))
        ]

    def _files(self, split: Split) -> SplitReader:
        """The users of a split."""
        where = (self.config.dataset, self.schema, split)
        return SplitReader(*where, only=["user"], faults=self.config.faults)

    def _score(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            _, outcome = self.model(batch)
        return torch.sigmoid(Outcome(*outcome).logits[:, 0])

    def _average_user(self, batch: Batch) -> Batch:
        """The batch with the mean vector for every user."""
        assert self.over.user_meta is not None
        known = batch.user_vectors
        mean = self.over.user_meta.reducer.get_buffer("mean").to(known.vectors.dtype)
        vectors = mean.expand_as(known.vectors).contiguous()
        average = known._replace(vectors=vectors, has=torch.ones_like(known.has))
        return dataclasses.replace(batch, user_vectors=average)

    def _distances(self, user: int) -> list[LayerDistance]:
        """Of each layer that is generated for users."""
        meta, store = self.over.user_meta, self.knowledge.user
        if meta is None or store is None:
            return []
        step = max(self.schema.num_users // SAMPLE, 1)
        sample = np.arange(0, self.schema.num_users, step)
        with torch.no_grad():
            vectors, has = store.gather(np.concatenate([[user], sample]))
            codes = meta.reducer(vectors, has).numpy()
        own, others = codes[0], codes[1:]
        average = others.mean(axis=0)
        found = []
        for name, layer in _layers(meta):
            flat = _flat(layer)
            gram = flat @ flat.T  # norms of all users' layers without making any of them

            def norm(codes: np.ndarray, gram: np.ndarray = gram) -> np.ndarray:
                squares = np.einsum("ur,rs,us->u", codes, gram, codes)
                return np.asarray(np.sqrt(np.maximum(squares, 0)))

            distance = norm((own - average)[None])[0]
            rank = float((norm(others - average) < distance).mean())
            relative = float(distance / norm(average[None])[0])
            found.append(LayerDistance(layer=name, distance=relative, rank=rank))
        return found

    def _titles(self, items: np.ndarray) -> list[str]:
        columns = ["item_key", *([t] if (t := self.schema.text.item_title) else [])]
        table = read_parquet(self.config.dataset / "items.parquet", columns).take(items)
        keys = table["item_key"].cast(pa.string()).to_pylist()
        titles = table[columns[-1]].cast(pa.string()).to_pylist()
        return [title or key for key, title in zip(keys, titles, strict=True)]


@contextmanager
def _average_scenario(meta: ScenarioMeta | None) -> Iterator[None]:
    """Within it, every scenario has the mean vector."""
    assert meta is not None
    knowledge = meta.get_buffer("knowledge")
    kept = knowledge.clone()
    knowledge.copy_(knowledge.mean(dim=0).expand_as(knowledge))
    try:
        yield
    finally:
        knowledge.copy_(kept)


def _layers(meta: UserMeta | ScenarioMeta) -> Iterator[tuple[str, GeneratedLinear]]:
    """The generated layers by name."""
    for at, layer in enumerate(meta.layers):
        assert isinstance(layer, GeneratedLinear)
        yield f"layer {at + 1}", layer
    if isinstance(meta, ScenarioMeta):
        yield "head", meta.head


def _flat(layer: GeneratedLinear) -> np.ndarray:
    """(R + 1, all weights and biases): a code times this is the generated layer."""
    parts = [layer.weight.detach().flatten(1), layer.bias.detach()]
    return np.asarray(torch.cat(parts, dim=1).cpu().numpy(), dtype=np.float64)


def _cosines(rows: np.ndarray) -> list[list[float]]:
    directions = unit_vectors(rows.astype(np.float64))
    return [[float(value) for value in row] for row in directions @ directions.T]


def _answer(store: KnowledgeStore, row: int) -> str | None:
    path = store.path / KEYS
    if "text" not in pq.read_schema(path).names:
        return None
    found: str | None = pq.read_table(path, columns=["text"])["text"][row].as_py()
    return found
