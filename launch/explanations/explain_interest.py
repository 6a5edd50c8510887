"""Explains the scores of rows by the earlier items that the interest blocks attend to."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msrec.data.loading.batch import Batch
from msrec.launch.explanations.explanation_file import AttendedEvent, RowInterest, RowScore
from msrec.model.interest.block import Attention, InterestBlock
from msrec.model.interest.histories import row_events
from msrec.model.interest.interest import Interest

Score = Callable[[Batch], Tensor]
"""Returns the scores of a batch, (B,)."""


@dataclasses.dataclass(frozen=True)
class InterestExplainer:
    """The interest blocks of a model, and what is needed to explain rows with them.

    Args:
        interest: the blocks.
        sources: names of their sources, in the same order.
        score: scores a batch with the model.
        titles: returns the titles of items.
        scenarios: names of the scenarios.
    """

    interest: Interest
    sources: Sequence[str]
    score: Score
    titles: Callable[[np.ndarray], list[str]]
    scenarios: Sequence[str]

    def rows(self, batch: Batch, scored: Sequence[RowScore]) -> list[RowInterest]:
        """Explains the rows of a batch, whose scores are known, in the order of the batch."""
        attention = self._attention(batch)
        without = {name: self._without(batch, number) for number, name in enumerate(attention)}
        without_history = self.score(without_events(batch))
        explained = []
        for at, row in enumerate(scored):
            events = self._events(batch, at, attention)
            explained.append(
                RowInterest(
                    **row.model_dump(include={"row_id", "item", "scenario", "label", "score"}),
                    without_source={name: float(score[at]) for name, score in without.items()},
                    without_history=float(without_history[at]),
                    events=events,
                )
            )
        return explained

    def _without(self, batch: Batch, number: int) -> Tensor:
        with _zero_output(self.interest.blocks[number]):
            return self.score(batch)

    def _attention(self, batch: Batch) -> dict[str, Attention]:
        """Returns the attention of each source's block."""
        # The vectors are read where the model has them: in its tables.
        with _inputs(self.interest) as inputs:
            self.score(batch)
        tables, histories, scenario = inputs[0][:3]
        row = row_events(histories, scenario, self.interest.cross_scenario)
        attention = {}
        for name, block, items in zip(self.sources, self.interest.blocks, tables, strict=True):
            assert isinstance(block, InterestBlock)
            with torch.no_grad():
                attention[name] = block.attention(items, histories, row)
        return attention

    def _events(
        self, batch: Batch, at: int, attention: dict[str, Attention]
    ) -> list[AttendedEvent]:
        events = batch.sequence
        bag = events.bag[at]
        places = torch.nonzero(events.scenario[bag] >= 0).flatten().tolist()
        if not places:
            return []
        titles = self.titles(events.items.values()[events.events[bag, places]].numpy())
        return [
            AttendedEvent(
                item=title,
                scenario=self.scenarios[int(events.scenario[bag, place])],
                label=float(events.label[bag, place]),
                weight={name: float(a.weights[at, place]) for name, a in attention.items()},
                similarity={name: float(a.similarity[at, place]) for name, a in attention.items()},
            )
            for title, place in zip(titles, places, strict=True)
        ]


def without_events(batch: Batch) -> Batch:
    """Returns the batch with empty histories."""
    events = batch.sequence
    empty = events._replace(
        events=torch.full_like(events.events, len(events.items.values())),
        scenario=torch.full_like(events.scenario, -1),
        label=torch.zeros_like(events.label),
    )
    return dataclasses.replace(batch, sequence=empty)


@contextmanager
def _inputs(module: nn.Module) -> Iterator[list[tuple[Any, ...]]]:
    """Fills the list with the arguments of each call of a module within the context."""
    calls: list[tuple[Any, ...]] = []
    handle = module.register_forward_pre_hook(lambda module, args: calls.append(args))
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def _zero_output(block: nn.Module) -> Iterator[None]:
    """Replaces the normalised columns of a block by zeros within the context."""
    handle = block.register_forward_hook(lambda module, inputs, columns: torch.zeros_like(columns))
    try:
        yield
    finally:
        handle.remove()
